// SPDX-License-Identifier: Apache-2.0
//
// store_segment (stage 2, index). Contract and shapes: index/index.hpp.
//
// Mapping: a warp moves a row, 16 bytes a lane.
// Bound:   memory, each row is read and written once.
#include <cstdint>

#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/index/cuda/index_ops.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;

__global__ __launch_bounds__(kThreads) void store_segment_kernel(index::StoreParams p,
                                                                 const IndexJob* jobs) {
  const IndexJob& job = jobs[blockIdx.x];
  const int kv_head = job.source.kv_head;
  const int stride = static_cast<int>(gridDim.y) * kWarps;
  for (int i = static_cast<int>(blockIdx.y) * kWarps + warp_id(); i < job.source.num_tokens;
       i += stride) {
    const int token = job.order == nullptr ? i : job.order[i];
    const std::uint32_t to = paged_row(job.target.row_pages, job.target.segment.first_row + i);
    if (lane_id() == 0) {
      p.positions[kv_head * p.positions_stride + to] =
          static_cast<std::uint32_t>(job.source.first_token + token);
    }
    if (p.stored.base == nullptr) continue;
    const std::byte* from =
        p.live.row(kv_head, paged_row(job.source.live_pages, job.source.first_live_row + token));
    std::byte* row = p.stored.row(kv_head, to);
    for (auto at = static_cast<std::size_t>(lane_id()) * 16; at < p.stored.row_bytes;
         at += kWarpLanes * 16) {
      store128(row + at, load128(from + at));
    }
  }
}

}  // namespace

void store_segments(const index::StoreParams& p, const IndexJob* jobs, const IndexShape& shape) {
  if (shape.num_jobs == 0) return;
  constexpr int kRowsPerBlock = 4 * kWarps;
  constexpr int kMaxGrid = 1024;
  const int blocks = (shape.max_tokens + kRowsPerBlock - 1) / kRowsPerBlock;
  launch(store_segment_kernel,
         {.grid = {static_cast<unsigned>(shape.num_jobs),
                   static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid)},
          .block = {kThreads},
          .shared_bytes = 0,
          .stream = shape.stream},
         p, jobs);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
