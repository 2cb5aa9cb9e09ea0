// SPDX-License-Identifier: Apache-2.0
//
// Jobs of an index, made on the device from what the host knows once for all layers and heads.
//
// Mapping: a thread a job.
// Bound:   latency.
#include <cstdint>

#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/index/cuda/index_ops.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

constexpr int kThreads = 128;

__global__ __launch_bounds__(kThreads) void fill_index_jobs_kernel(IndexJobs p, int num_jobs,
                                                                   IndexJob* jobs,
                                                                   std::uint32_t* previous) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= num_jobs) return;
  const SealView& seal = p.seals[i / p.num_planes];
  std::byte* area = p.scratch.area(i);
  IndexJob job{};
  job.source = {seal.live_pages, seal.first_live_row, seal.first_token, seal.segment.num_rows,
                p.first_plane + i % p.num_planes};
  job.target = {seal.segment, seal.blocks, seal.row_pages};
  job.num_clusters = seal.num_clusters;
  if (!p.in_token_order) {
    job.order = reinterpret_cast<const std::int32_t*>(area + p.scratch.order);
    job.offset = reinterpret_cast<const std::int32_t*>(area + p.scratch.offset);
    job.used = reinterpret_cast<std::int32_t*>(area + p.scratch.used);
    job.variance = reinterpret_cast<float*>(area + p.scratch.variance);
    job.value_sum = reinterpret_cast<float*>(area + p.scratch.value_sum);
  }
  jobs[i] = job;
  previous[i] = seal.previous;
}

__global__ __launch_bounds__(kThreads) void count_clusters_kernel(IndexStore index,
                                                                  const IndexJob* jobs,
                                                                  int num_jobs,
                                                                  std::int64_t* total) {
  auto& storage = dynamic_shared<BlockScan<kThreads>::Storage>();
  std::int64_t clusters = 0;
  for (int first = 0; first < num_jobs; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const int used = i < num_jobs
                         ? *index.record_used(jobs[i].source.kv_head, jobs[i].target.segment.record)
                         : 0;
    int sum = 0;
    BlockScan<kThreads>(storage).exclusive(used, sum);
    clusters += sum;
  }
  if (threadIdx.x == 0) *total += clusters;
}

}  // namespace

void fill_index_jobs(const IndexJobs& p, int num_seals, IndexJob* jobs, std::uint32_t* previous,
                     void* stream) {
  const int num_jobs = num_seals * p.num_planes;
  if (num_jobs == 0) return;
  launch(fill_index_jobs_kernel,
         {.grid = {static_cast<unsigned>((num_jobs + kThreads - 1) / kThreads)},
          .block = {kThreads},
          .shared_bytes = 0,
          .stream = stream},
         p, num_jobs, jobs, previous);
}

void count_clusters(const IndexStore& index, const IndexJob* jobs, int num_jobs,
                    std::int64_t* total, void* stream) {
  if (num_jobs == 0) return;
  launch(count_clusters_kernel,
         {.grid = {1},
          .block = {kThreads},
          .shared_bytes = shared_size<BlockScan<kThreads>::Storage>(),
          .stream = stream},
         index, jobs, num_jobs, total);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
