// SPDX-License-Identifier: Apache-2.0
//
// Jobs of a clustering, made on the device from what the host knows once for all layers and heads.
//
// Mapping: a thread a job.
// Bound:   latency.
#include <cstdint>

#include "kernels/cluster/cuda/cluster_ops.hpp"
#include "kernels/cluster/rules.hpp"
#include "kernels/common/cuda/device.cuh"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

constexpr int kThreads = 128;

__device__ ClusterJob& run_of(ClusterJob& job) {
  return job;
}
__device__ ClusterJob& run_of(LargeClusterJob& job) {
  return job.job;
}
__device__ void set_scratch(ClusterJob&, const ClusterJobs&, std::byte*) {}
__device__ void set_scratch(LargeClusterJob& job, const ClusterJobs& p, std::byte* area) {
  job.centroids = reinterpret_cast<std::uint16_t*>(area + p.scratch.centroids);
  job.bias = reinterpret_cast<float*>(area + p.scratch.bias);
  job.cursor = reinterpret_cast<std::int32_t*>(area + p.scratch.cursor);
}

template <class Job>
__global__ __launch_bounds__(kThreads) void fill_cluster_jobs_kernel(ClusterJobs p, int num_jobs,
                                                                     Job* jobs) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= num_jobs) return;
  const SealView& seal = p.seals[i / p.num_planes];
  const int plane = p.first_plane + i % p.num_planes;
  std::byte* area = p.scratch.area(i);
  ClusterJob& run = run_of(jobs[i]);
  run.params = p.like;
  run.params.keys = {p.live, seal.live_pages, seal.first_live_row, seal.segment.num_rows, plane};
  run.params.num_clusters = seal.num_clusters;
  run.params.start_seed = cluster::start_seed(p.seed, p.model_layers[plane / p.num_kv_heads],
                                              plane % p.num_kv_heads, seal.first_token);
  run.labels = reinterpret_cast<std::int32_t*>(area);
  run.order = reinterpret_cast<std::int32_t*>(area + p.scratch.order);
  run.offset = reinterpret_cast<std::int32_t*>(area + p.scratch.offset);
  set_scratch(jobs[i], p, area);
}

template <class Job>
void fill(const ClusterJobs& p, int num_seals, Job* jobs, void* stream) {
  const int num_jobs = num_seals * p.num_planes;
  if (num_jobs == 0) return;
  launch(fill_cluster_jobs_kernel<Job>,
         {.grid = {static_cast<unsigned>((num_jobs + kThreads - 1) / kThreads)},
          .block = {kThreads},
          .shared_bytes = 0,
          .stream = stream},
         p, num_jobs, jobs);
}

}  // namespace

void fill_cluster_jobs(const ClusterJobs& params, int num_seals, LargeClusterJob* jobs,
                       void* stream) {
  fill(params, num_seals, jobs, stream);
}

void fill_cluster_jobs(const ClusterJobs& params, int num_seals, ClusterJob* jobs, void* stream) {
  fill(params, num_seals, jobs, stream);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
