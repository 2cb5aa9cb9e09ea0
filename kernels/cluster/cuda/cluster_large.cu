// SPDX-License-Identifier: Apache-2.0
//
// cluster_segment for prompts that are one segment (stage 1, cluster). Contract and shapes:
// cluster/cluster.hpp.
//
// Mapping: as cluster_segment.cu, with each step of an iteration over the whole grid: assign with a
//          block of threads per 128 keys and tiles of 64 centroids by cp.async; the stable counting
//          sort by one block of threads a job; sums by kUpdateLanes lanes a cluster.
// Bound:   tensor cores; the sort is latency, 512 tokens at a time.
#include <cstdint>

#include "kernels/cluster/cuda/assign.cuh"
#include "kernels/cluster/cuda/cluster_ops.hpp"
#include "kernels/cluster/cuda/tuning.hpp"
#include "kernels/common/dispatch.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

constexpr int kMeanThreads = 256;
constexpr int kMeanClusters = kMeanThreads / kUpdateLanes;  ///< of a block of threads
constexpr int kAssignWarps = 4;
constexpr int kSortThreads = 512;
constexpr int kSortWarps = kSortThreads / kWarpLanes;

// ------------------------------------------------------------------------------------- start

/// The first tokens of a shuffle, as random_starts() of rules.hpp draws them, in the job's order.
__global__ __launch_bounds__(kMeanThreads) void draw_starts_kernel(const LargeClusterJob* jobs) {
  const ClusterJob& job = jobs[blockIdx.x].job;
  const int tokens = job.params.keys.num_tokens;
  for (int i = static_cast<int>(threadIdx.x); i < tokens; i += kMeanThreads) job.order[i] = i;
  __syncthreads();
  std::uint64_t state = job.params.start_seed;
  for (int i = 0; i < job.params.num_clusters && threadIdx.x == 0; ++i) {
    const int other = i + cluster::draw(state, tokens - i);
    const std::int32_t token = job.order[other];
    job.order[other] = job.order[i];
    job.order[i] = token;
  }
}

// ------------------------------------------------------------------------------------- means

/// Centroids from start tokens, or from the tokens of each cluster. An empty cluster keeps its own.
template <DType kDType, int kHeadDim>
__global__ __launch_bounds__(kMeanThreads) void mean_kernel(const LargeClusterJob* jobs,
                                                            bool is_start) {
  const LargeClusterJob& large = jobs[blockIdx.x];
  const cluster::SegmentParams& p = large.job.params;
  const int cluster =
      static_cast<int>(blockIdx.y) * kMeanClusters + static_cast<int>(threadIdx.x) / kUpdateLanes;
  const int lane = static_cast<int>(threadIdx.x) % kUpdateLanes;
  const bool is_padding = cluster >= p.num_clusters;
  ChannelSums<kDType, kHeadDim, kUpdateLanes> sums(lane);
  int count = 0;
  if (is_start && !is_padding) {
    count = 1;
    sums.add(key_row(
        p.keys, p.random_start ? large.job.order[cluster]
                               : cluster::even_start(cluster, p.keys.num_tokens, p.num_clusters)));
  } else if (!is_padding) {
    const int begin = large.job.offset[cluster];
    count = large.job.offset[cluster + 1] - begin;
    for (int i = 0; i < count; ++i) sums.add(key_row(p.keys, large.job.order[begin + i]));
    if (count > 0) sums.divide(static_cast<float>(count));
  }
  const float bias = finish_mean(sums, p.metric);
  if (cluster >= large_clusters(p.num_clusters) || (count == 0 && !is_padding)) return;
  std::uint16_t* to = large.centroids + std::int64_t{cluster} * kHeadDim;
  sums.for_each_chunk([&](int chunk, const float(&values)[kChunk]) {
    store128(to + chunk * kChunk, pack_chunk<kDType>(values));
  });
  if (lane == 0) large.bias[cluster] = is_padding ? -kMinusInfinity : bias;
}

// ------------------------------------------------------------------------------------ assign

template <int kHeadDim>
struct AssignShared {
  uint4 centroids[2][kLargeTile * CentroidLayout<kHeadDim>::kChunks];
  float bias[2][kLargeTile];
};

template <DType kDType, int kHeadDim>
class LargeAssigner {
 public:
  using Layout = CentroidLayout<kHeadDim>;
  static constexpr int kThreads = kAssignWarps * kWarpLanes;
  static constexpr int kTiles = kHeadDim <= kTwoTilesHeadDim ? 2 : 1;
  static constexpr int kKeys = 16 * kTiles;
  static constexpr int kBlockKeys = kAssignWarps * kKeys;

  __device__ LargeAssigner(const LargeClusterJob& large, AssignShared<kHeadDim>& shared)
      : large_(large), p_(large.job.params), shared_(shared) {}

  __device__ void run() {
    const int tiles = large_clusters(p_.num_clusters) / kLargeTile;
    const int first = static_cast<int>(blockIdx.y) * kBlockKeys + warp_id() * kKeys;
    fetch(0);
    keys_.load(p_.keys, first);
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      if (tile + 1 < tiles) fetch(tile + 1);
      cp_async_commit();  // perhaps of nothing: one group a turn
      cp_async_wait<1>();
      __syncthreads();
#pragma unroll 1  // keys fill the registers
      for (int c = 0; c < kLargeTile; c += 8) {
        keys_.score(shared_.centroids[tile % 2], shared_.bias[tile % 2], c, tile * kLargeTile);
      }
      __syncthreads();  // the tile is fetched over next
    }
    cp_async_wait<0>();
    keys_.finish(p_.keys.num_tokens - first,
                 [&](int token, int label) { large_.job.labels[first + token] = label; });
  }

 private:
  /// Copies of a tile; the first one's group is committed by the first turn of the loop.
  __device__ void fetch(int tile) {
    const auto* from = reinterpret_cast<const std::byte*>(
        large_.centroids + std::int64_t{tile} * kLargeTile * kHeadDim);
    uint4* to = shared_.centroids[tile % 2];
    for (int i = static_cast<int>(threadIdx.x); i < kLargeTile * Layout::kChunks; i += kThreads) {
      cp_async16(to + Layout::at(i / Layout::kChunks, i % Layout::kChunks), from + 16 * i);
    }
    for (int i = static_cast<int>(threadIdx.x); i < kLargeTile; i += kThreads) {
      shared_.bias[tile % 2][i] = large_.bias[tile * kLargeTile + i];
    }
    if (tile == 0) cp_async_commit();
  }

  const LargeClusterJob& large_;
  const cluster::SegmentParams& p_;
  AssignShared<kHeadDim>& shared_;
  KeyTiles<kDType, kHeadDim, kTiles> keys_;
};

template <DType kDType, int kHeadDim>
__global__ __launch_bounds__(kAssignWarps* kWarpLanes,
                             2) void assign_kernel(const LargeClusterJob* jobs) {
  LargeAssigner<kDType, kHeadDim>(jobs[blockIdx.x], dynamic_shared<AssignShared<kHeadDim>>()).run();
}

// -------------------------------------------------------------------------------------- sort

/// Stable counting sort of one job's tokens by label.
__global__ __launch_bounds__(kSortThreads) void order_tokens_kernel(const LargeClusterJob* jobs) {
  auto& storage = dynamic_shared<BlockScan<kSortThreads>::Storage>();
  const LargeClusterJob& large = jobs[blockIdx.x];
  const ClusterJob& job = large.job;
  const int tokens = job.params.keys.num_tokens;
  const int clusters = job.params.num_clusters;
  const auto thread = static_cast<int>(threadIdx.x);
  for (int c = thread; c < clusters; c += kSortThreads) large.cursor[c] = 0;
  __syncthreads();
  for (int i = thread; i < tokens; i += kSortThreads) atomicAdd(&large.cursor[job.labels[i]], 1);
  __syncthreads();
  int before = 0;
  for (int first = 0; first < clusters; first += kSortThreads) {
    const int c = first + thread;
    int total = 0;
    const int mine =
        BlockScan<kSortThreads>(storage).exclusive(c < clusters ? large.cursor[c] : 0, total);
    if (c < clusters) job.offset[c] = large.cursor[c] = before + mine;
    before += total;
  }
  if (thread == 0) job.offset[clusters] = tokens;
  __syncthreads();
  // Warps take turns, so that tokens of a label keep their order.
  for (int first = 0; first < tokens; first += kSortThreads) {
    const int token = first + thread;
    const unsigned active = __ballot_sync(kAllLanes, token < tokens ? 1 : 0);
    const int label = token < tokens ? job.labels[token] : -1;
    const unsigned peers = __match_any_sync(kAllLanes, label);
    const int rank = __popc(peers & ((1U << lane_id()) - 1U));
    for (int warp = 0; warp < kSortWarps; ++warp) {
      if (warp == warp_id() && token < tokens) {
        const int base = large.cursor[label];
        job.order[base + rank] = token;
        __syncwarp(active);  // all have read the cursors
        if (rank == 0) large.cursor[label] = base + __popc(peers);
      }
      __syncthreads();
    }
  }
}

template <DType kDType, int kHeadDim>
void launch_all(const LargeClusterJob* jobs, unsigned num_jobs, const cluster::SegmentParams& like,
                void* stream) {
  using Assigner = LargeAssigner<kDType, kHeadDim>;
  const auto means = static_cast<unsigned>(large_clusters(like.num_clusters) / kMeanClusters);
  const auto tiles = static_cast<unsigned>((like.keys.num_tokens + Assigner::kBlockKeys - 1) /
                                           Assigner::kBlockKeys);
  const auto run_means = [&](bool is_start) {
    launch(
        mean_kernel<kDType, kHeadDim>,
        {.grid = {num_jobs, means}, .block = {kMeanThreads}, .shared_bytes = 0, .stream = stream},
        jobs, is_start);
  };
  if (like.random_start) {
    launch(draw_starts_kernel,
           {.grid = {num_jobs}, .block = {kMeanThreads}, .shared_bytes = 0, .stream = stream},
           jobs);
  }
  for (int i = 0; i < like.iterations; ++i) {
    run_means(i == 0);
    launch(assign_kernel<kDType, kHeadDim>,
           {.grid = {num_jobs, tiles},
            .block = {Assigner::kThreads},
            .shared_bytes = shared_size<AssignShared<kHeadDim>>(),
            .stream = stream},
           jobs);
    launch(order_tokens_kernel,
           {.grid = {num_jobs},
            .block = {kSortThreads},
            .shared_bytes = shared_size<BlockScan<kSortThreads>::Storage>(),
            .stream = stream},
           jobs);
  }
}

}  // namespace

void cluster_large_segments(const LargeClusterJob* jobs, int num_jobs,
                            const cluster::SegmentParams& like, void* stream) {
  if (num_jobs == 0) return;
  const RowStore& store = like.keys.store;
  dispatch_value<DType::kF16, DType::kBF16>("kv_dtype", store.dtype, [&](auto dtype) {
    dispatch_head_dim(store.head_dim, [&](auto head_dim) {
      launch_all<dtype.value, head_dim.value>(jobs, static_cast<unsigned>(num_jobs), like, stream);
    });
  });
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
