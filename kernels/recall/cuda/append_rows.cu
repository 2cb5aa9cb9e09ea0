// SPDX-License-Identifier: Apache-2.0
//
// append_rows (stage 4, recall). Contract and shapes: recall/recall.hpp.
//
// Mapping: a thread converts 8 elements and stores 16 bytes.
// Bound:   memory.
#include <cstdint>

#include "kernels/common/cuda/device.cuh"
#include "kernels/common/cuda/rows.cuh"
#include "kernels/common/cuda/tensor_io.cuh"
#include "kernels/common/dispatch.hpp"
#include "kernels/recall/cuda/recall_ops.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

constexpr int kThreads = 256;

/// Elements d .. d + 7 of a token's row of one head.
__device__ void load_chunk(const TensorView& t, std::int64_t token, int head, int d,
                           float (&to)[kChunk]) {
  const std::int64_t at = token * t.stride[0] + head * t.stride[1] + d * t.stride[2];
  for (int j = 0; j < kChunk; ++j) to[j] = load_element(t, at + j * t.stride[2]);
}

/// Whether a chunk can be moved as it is: the store's dtype, together, and aligned.
__device__ bool is_plain(const TensorView& t, DType dtype, const std::byte* from) {
  return t.dtype == dtype && t.stride[2] == 1 && reinterpret_cast<std::uintptr_t>(from) % 16 == 0;
}

template <DType kDType>
__global__ __launch_bounds__(kThreads) void append_rows_kernel(recall::AppendParams p,
                                                               const AppendJob* jobs) {
  const AppendJob& job = jobs[blockIdx.x];
  const auto kv_head = static_cast<int>(blockIdx.y);
  const int key_chunks = p.live.head_dim / kChunk;
  const int row_chunks = key_chunks + p.live.value_dim / kChunk;
  const int items = job.num_tokens * row_chunks;
  const int stride = static_cast<int>(gridDim.z) * kThreads;
  for (int i = static_cast<int>(blockIdx.z * kThreads + threadIdx.x); i < items; i += stride) {
    const int token = i / row_chunks;
    const int place = i % row_chunks;  // in the row: chunks of the key, then of the value
    const bool is_key = place < key_chunks;
    const int d = (is_key ? place : place - key_chunks) * kChunk;
    const TensorView& tensor = is_key ? p.key : p.value;
    std::byte* to = p.live.row(kv_head, paged_row(job.pages, job.first_row + token)) + 16 * place;
    if (tensor.empty()) {
      store128(to, uint4{0, 0, 0, 0});
      continue;
    }
    const std::int64_t from_token = job.first_token + token;
    const std::byte* from =
        static_cast<const std::byte*>(tensor.data) +
        2 * (from_token * tensor.stride[0] + kv_head * tensor.stride[1] + d * tensor.stride[2]);
    if (is_plain(tensor, kDType, from)) {
      store128(to, load128(from));
      continue;
    }
    float x[kChunk];
    load_chunk(tensor, from_token, kv_head, d, x);
    store128(to, pack_chunk<kDType>(x));
  }
}

}  // namespace

void append_rows(const recall::AppendParams& p, const AppendJob* jobs, int num_jobs, int max_tokens,
                 void* stream) {
  if (num_jobs == 0 || max_tokens == 0) return;
  const int items = max_tokens * ((p.live.head_dim + p.live.value_dim) / kChunk);
  constexpr int kMaxGrid = 1024;
  const int blocks = (items + kThreads - 1) / kThreads;
  dispatch_value<DType::kF16, DType::kBF16>("kv_dtype", p.live.dtype, [&](auto dtype) {
    launch(append_rows_kernel<dtype.value>,
           {.grid = {static_cast<unsigned>(num_jobs), static_cast<unsigned>(p.key.shape[1]),
                     static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid)},
            .block = {kThreads},
            .shared_bytes = 0,
            .stream = stream},
           p, jobs);
  });
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
