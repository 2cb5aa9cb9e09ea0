// SPDX-License-Identifier: Apache-2.0
//
// decode, merge_states (stage 5, attend). Contract and shapes: attend/attend.hpp.
//
// Mapping: as attend.cu: one block of threads per row, head and piece, the last one merges. Rows are on
//          the x axis of the grid, the only one that goes beyond 65535.
// Bound:   memory: each row is read once per eight query heads.
#include <cstdint>

#include "kernels/attend/cuda/attend_ops.hpp"
#include "kernels/attend/cuda/merge.cuh"
#include "kernels/attend/cuda/row_piece.cuh"
#include "kernels/attend/rules.hpp"
#include "kernels/common/dispatch.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

using attend::DecodeParams;
using attend::Partials;
using attend::StateParams;

__device__ std::int32_t i32_at(const TensorView& t, std::int64_t offset) {
  return static_cast<const std::int32_t*>(t.data)[offset];
}

/// The tokens of one row and head of the engine's tensors.
class TokenFinder {
 public:
  __device__ TokenFinder(const DecodeParams& p, int row, int head, int kv_head)
      : p_(p), row_(row), head_(head), kv_head_(kv_head), count_(p.key.shape[1]) {
    if (!p.token_ids.empty()) {
      count_ = i32_at(p.counts, row * p.counts.stride[0] + head * p.counts.stride[1]);
    } else if (!p.lengths.empty()) {
      count_ = i32_at(p.lengths, row * p.lengths.stride[0]);
    }
  }

  [[nodiscard]] __device__ std::int64_t count() const { return count_; }

  __device__ RowAddress operator()(std::int64_t i) const {
    const TensorView& ids = p_.token_ids;
    const std::int64_t token =
        ids.empty() ? i
                    : i32_at(ids, row_ * ids.stride[0] + head_ * ids.stride[1] + i * ids.stride[2]);
    return {find(p_.key, token), find(p_.value, token)};
  }

 private:
  [[nodiscard]] __device__ const std::byte* find(const TensorView& t, std::int64_t token) const {
    const std::int64_t at = row_ * t.stride[0] + token * t.stride[1] + kv_head_ * t.stride[2];
    return static_cast<const std::byte*>(t.data) + at * 2;  // f16 or bf16
  }

  const DecodeParams& p_;
  std::int64_t row_;
  std::int64_t head_;
  std::int64_t kv_head_;
  std::int64_t count_;
};

template <int kDim>
struct DecodeShared {
  PieceShared<kDim> rows;
  float query[kMaxPassHeads * DimOf<kDim>::kMost];
  int is_last;
};

/// kDim: as of RowPiece.
template <DType kDType, int kDim>
__global__ __launch_bounds__(kAttendThreads, 2) void decode_kernel(DecodeParams p,
                                                                   Partials partials,
                                                                   std::uint32_t* arrived) {
  auto& shared = dynamic_shared<DecodeShared<kDim>>();
  const DimOf<kDim> head_dim(static_cast<int>(p.key.shape[3]));
  const DimOf<kDim> value_dim(static_cast<int>(p.value.shape[3]));
  const auto num_q_heads = static_cast<int>(p.query.shape[1]);
  const auto heads = static_cast<int>(gridDim.y);
  const int served = num_q_heads / heads;
  const auto row = static_cast<int>(blockIdx.x) / attend::kMaxRowPieces;
  const auto head = static_cast<int>(blockIdx.y);
  const auto piece = static_cast<int>(blockIdx.x) % attend::kMaxRowPieces;
  const int kv_head = head * static_cast<int>(p.key.shape[2]) / heads;
  const TokenFinder finder(p, row, head, kv_head);
  const int pieces = attend::num_row_pieces(finder.count());
  if (piece >= (pieces > 0 ? pieces : 1)) return;
  const std::int64_t step = attend::rows_per_piece(finder.count());
  for (int first = 0; first < served && piece < pieces; first += kMaxPassHeads) {
    const int pass = min(kMaxPassHeads, served - first);
    for (int i = static_cast<int>(threadIdx.x); i < pass * head_dim; i += kAttendThreads) {
      const int q_head = head * served + first + i / head_dim;
      shared.query[i] = load_element(p.query, row * p.query.stride[0] + q_head * p.query.stride[1] +
                                                  i % head_dim * p.query.stride[2]);
    }
    __syncthreads();
    RowPiece<kDType, kDim, TokenFinder> rows(shared.rows, finder, shared.query, pass,
                                             {p.softmax_scale * kLog2E, Softcap(p.logit_softcap)},
                                             head_dim, value_dim);
    const std::int64_t last = (piece + 1) * step;
    rows.run(piece * step, last < finder.count() ? last : finder.count());
    for (int i = static_cast<int>(threadIdx.x); i < pass * value_dim; i += kAttendThreads) {
      const int q_head = head * served + first + i / value_dim;
      const auto state = rows.read(i / value_dim, i % value_dim);
      partials.output(row, q_head, piece)[i % value_dim] = state.o;
      if (i % value_dim == 0) partials.head(row, q_head, piece) = {state.m, state.l, 0.0F, 0};
    }
    __syncthreads();  // the next pass writes the shared memory
  }
  std::uint32_t* counter = arrived + std::int64_t{row} * heads + head;
  if (!arrive_last(counter, pieces > 0 ? pieces : 1, shared.is_last)) return;
  for (int i = static_cast<int>(threadIdx.x); i < served * value_dim; i += kAttendThreads) {
    const int q_head = head * served + i / value_dim;
    ElementState state;
    for (int part = 0; part < pieces; ++part) {
      const attend::PartialHead& partial = partials.head(row, q_head, part);
      state.add(partial.m, partial.l, partials.output(row, q_head, part)[i % value_dim]);
    }
    write_output(p.out, p.lse, row, q_head, i % value_dim, state);
  }
}

/// One block of threads per row and query head, a thread an element.
__global__ void merge_states_kernel(StateParams p) {
  const auto row = static_cast<std::int64_t>(blockIdx.x);
  const auto q_head = static_cast<int>(blockIdx.y);
  const auto d = static_cast<int>(threadIdx.x);
  ElementState state;
  for (int part = 0; part < p.num_parts; ++part) {
    const TensorView& lse = p.lses[part];
    const float log_sum =
        static_cast<const float*>(lse.data)[row * lse.stride[0] + q_head * lse.stride[1]];
    if (!(log_sum > kMinusInfinity)) continue;
    const TensorView& out = p.outs[part];
    state.add(log_sum * kLog2E, 1.0F,
              load_element(out, row * out.stride[0] + q_head * out.stride[1] + d * out.stride[2]));
  }
  __syncthreads();  // the total may be one of the parts: all have read its LSE
  write_output(p.out, p.lse, row, q_head, d, state);
}

/// Rows come by copies of 16 bytes.
void check_alignment(const char* name, const TensorView& t) {
  bool is_aligned = reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0;
  for (int axis = 0; axis < 3; ++axis) {
    is_aligned = is_aligned && (t.shape[axis] <= 1 || t.stride[axis] % kChunk == 0);
  }
  if (!is_aligned) throw_misaligned(name, t);
}

}  // namespace

void decode(const DecodeParams& p, const Partials& partials, std::uint32_t* arrived, void* stream) {
  if (p.query.shape[0] == 0) return;
  check_alignment("key", p.key);
  check_alignment("value", p.value);
  const bool per_query_head = !p.token_ids.empty() && p.token_ids.shape[1] == p.query.shape[1];
  const auto heads = static_cast<unsigned>(per_query_head ? p.query.shape[1] : p.key.shape[2]);
  dispatch_value<DType::kF16, DType::kBF16>("kv_dtype", p.key.dtype, [&](auto dtype) {
    const auto dim_of = [](const TensorView& t) { return static_cast<int>(t.shape[3]); };
    dispatch_dims(dim_of(p.key), dim_of(p.value), [&](auto dim) {
      launch(decode_kernel<dtype.value, dim.value>,
             {.grid = {attend::kMaxRowPieces * static_cast<unsigned>(p.query.shape[0]), heads},
              .block = {kAttendThreads},
              .shared_bytes = shared_size<DecodeShared<dim.value>>(),
              .stream = stream},
             p, partials, arrived);
    });
  });
}

void merge_states(const StateParams& p, void* stream) {
  if (p.out.shape[0] == 0) return;
  launch(merge_states_kernel,
         {.grid = {static_cast<unsigned>(p.out.shape[0]), static_cast<unsigned>(p.out.shape[1])},
          .block = {static_cast<unsigned>(p.out.shape[2])},
          .shared_bytes = 0,
          .stream = stream},
         p);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
