// SPDX-License-Identifier: Apache-2.0
//
// Rows from page to page, for forks and cuts (stage 4, recall). Contract: recall/cuda/recall_ops.hpp.
//
// Mapping: a warp a row of one plane.
// Bound:   memory.
#include <cstdint>

#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/common/cuda/rows.cuh"
#include "kernels/recall/cuda/recall_ops.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;

/// By the lanes of a warp; a row's bytes are a multiple of 16.
__device__ void copy_row(const std::byte* from, std::byte* to, std::size_t bytes) {
  for (auto at = static_cast<std::size_t>(lane_id()) * 16; at < bytes; at += 16 * kWarpLanes) {
    store128(to + at, load128(from + at));
  }
}

__global__ __launch_bounds__(kThreads) void copy_page_kernel(RowStore store,
                                                             std::uint32_t* positions,
                                                             std::int64_t positions_stride,
                                                             PageRows rows) {
  const int i = static_cast<int>(blockIdx.x) * kWarps + warp_id();
  if (i >= rows.num_rows) return;
  const auto plane = static_cast<int>(blockIdx.y);
  const std::uint32_t from = rows.from * kPageRows + static_cast<std::uint32_t>(i);
  const std::uint32_t to = rows.to * kPageRows + static_cast<std::uint32_t>(i);
  if (store.base != nullptr)
    copy_row(store.row(plane, from), store.row(plane, to), store.row_bytes);
  if (positions == nullptr || lane_id() != 0) return;
  positions += plane * positions_stride;
  positions[to] = positions[from];
}

__global__ __launch_bounds__(kThreads) void restore_rows_kernel(RestoreParams p) {
  const int i = static_cast<int>(blockIdx.x) * kWarps + warp_id();
  if (i >= p.num_rows) return;
  const auto plane = static_cast<int>(blockIdx.y);
  const std::uint32_t row = paged_row(p.row_pages, p.first_row + i);
  const std::int64_t token = p.positions[plane * p.positions_stride + row] - p.first_token;
  if (token >= p.num_tokens) return;
  copy_row(p.stored.row(plane, row), p.live.row(plane, paged_row(p.live_pages, token)),
           p.stored.row_bytes);
}

LaunchConfig per_row(int num_rows, int num_planes, void* stream) {
  return {.grid = {static_cast<unsigned>((num_rows + kWarps - 1) / kWarps),
                   static_cast<unsigned>(num_planes)},
          .block = {kThreads},
          .shared_bytes = 0,
          .stream = stream};
}

}  // namespace

void copy_page(const RowStore& store, std::uint32_t* positions, std::int64_t positions_stride,
               const PageRows& rows, int num_planes, void* stream) {
  if (rows.num_rows == 0) return;
  launch(copy_page_kernel, per_row(rows.num_rows, num_planes, stream), store, positions,
         positions_stride, rows);
}

void restore_rows(const RestoreParams& p, int num_planes, void* stream) {
  if (p.num_rows == 0) return;
  launch(restore_rows_kernel, per_row(p.num_rows, num_planes, stream), p);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
