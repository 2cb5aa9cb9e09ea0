// SPDX-License-Identifier: Apache-2.0
//
// read_row (stage 4, recall) for runs of rows, and quads that go out of date. Contract: recall.hpp.
//
// Mapping: reads: a warp a row of one KV head; drops: a thread a quad of one KV head and layer.
// Bound:   memory.
#include <cstdint>

#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/common/cuda/tensor_io.cuh"
#include "kernels/common/dispatch.hpp"
#include "kernels/recall/cuda/recall_ops.hpp"
#include "kernels/recall/rules.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

using recall::kNoQuad;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;

template <DType kDType>
__global__ __launch_bounds__(kThreads) void read_rows_kernel(recall::ReadParams p, RowRun run) {
  const auto kv_head = static_cast<int>(blockIdx.y);
  const int i = static_cast<int>(blockIdx.x) * kWarps + warp_id();
  if (i >= run.num_rows) return;
  const std::uint32_t row = run.first_row + static_cast<std::uint32_t>(i);
  const std::int64_t token = run.positions == nullptr
                                 ? run.first_token + i
                                 : run.positions[kv_head * run.positions_stride + row];
  if (token < run.begin || token >= run.end) return;
  const auto* elements = reinterpret_cast<const std::uint16_t*>(p.store.row(kv_head, row));
  const int head_dim = p.store.head_dim;
  for (int element = lane_id(); element < head_dim + p.store.value_dim; element += kWarpLanes) {
    const TensorView& t = element < head_dim ? p.key : p.value;
    const int d = element < head_dim ? element : element - head_dim;
    const std::int64_t at =
        (token - run.begin) * t.stride[0] + kv_head * t.stride[1] + d * t.stride[2];
    store_element(t, at, Element<kDType>::load(elements[element]));
  }
}

__global__ __launch_bounds__(kThreads) void drop_quads_kernel(SlotPools pools,
                                                              const QuadRange* ranges) {
  const QuadRange range = ranges[blockIdx.x];
  const std::int64_t plane = blockIdx.y;
  std::uint32_t* directory = pools.directory + plane * pools.num_quads;
  for (std::uint32_t i = threadIdx.x; i < range.count; i += kThreads) {
    // Ranges may overlap: one of them has the slot.
    const std::uint32_t slot = atomicExch(directory + range.first + i, kNoSlot);
    if (slot == kNoSlot) continue;
    const std::int64_t at = plane * pools.num_slots + slot;
    pools.owner[at] = kNoQuad;
    pools.stamp[at] = 0;
    pools.referenced[at] = 0;
  }
}

}  // namespace

void read_rows(const recall::ReadParams& p, const RowRun& run, int num_kv_heads, void* stream) {
  if (run.num_rows == 0) return;
  dispatch_value<DType::kF16, DType::kBF16>("kv_dtype", p.store.dtype, [&](auto dtype) {
    launch(read_rows_kernel<dtype.value>,
           {.grid = {static_cast<unsigned>((run.num_rows + kWarps - 1) / kWarps),
                     static_cast<unsigned>(num_kv_heads)},
            .block = {kThreads},
            .shared_bytes = 0,
            .stream = stream},
           p, run);
  });
}

void drop_quads(const SlotPools& pools, int num_planes, const QuadRange* ranges, int num_ranges,
                void* stream) {
  if (num_ranges == 0) return;
  launch(drop_quads_kernel,
         {.grid = {static_cast<unsigned>(num_ranges), static_cast<unsigned>(num_planes)},
          .block = {kThreads},
          .shared_bytes = 0,
          .stream = stream},
         pools, ranges);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
