// SPDX-License-Identifier: Apache-2.0
//
// Stage 1 of 5, cluster, on a device: many segments a launch. Pointers inside the parameters are
// device addresses; the contracts are those of cluster/cluster.hpp. Keys are f16 or bf16.
#pragma once

#include <cstdint>

#include "kernels/cluster/cluster.hpp"
#include "kernels/common/cuda/backend.hpp"
#include "kernels/common/cuda/seal_view.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// Largest segment that is clustered in one launch by one block of threads.
inline constexpr int kMaxSegmentTokens = 2048;
inline constexpr int kMaxSegmentClusters = 256;

/// Segments that are at most this large take a quarter of the threads and shared memory.
inline constexpr int kMaxWindowTokens = 512;
inline constexpr int kMaxWindowClusters = 64;

/// One K-means run and where its results go.
struct ClusterJob {
  cluster::SegmentParams params;
  std::int32_t* labels;  ///< [num_tokens]
  std::int32_t* order;   ///< [num_tokens]
  std::int32_t* offset;  ///< [num_clusters + 1]
};

/// All iterations of all jobs, one launch. `jobs` is a device array. The metric, dtype and head_dim
/// are those of `like` for all of them; no job has more tokens and clusters than `like`.
/// Labels are those of keys against centroids rounded to the rows' dtype.
/// \throws ConfigError  if `like` has more than kMaxSegmentTokens or kMaxSegmentClusters
void cluster_segments(const ClusterJob* jobs, int num_jobs, const cluster::SegmentParams& like,
                      void* stream);

/// A run of any size, with scratch for its centroids.
struct LargeClusterJob {
  ClusterJob job;
  std::uint16_t* centroids;  ///< [large_clusters(num_clusters), head_dim], in the rows' dtype
  float* bias;               ///< [large_clusters(num_clusters)]
  std::int32_t* cursor;      ///< [num_clusters]
};
/// Clusters with padding up to whole tiles.
inline constexpr int kLargeTile = 64;
constexpr int large_clusters(int num_clusters) {
  return (num_clusters + kLargeTile - 1) / kLargeTile * kLargeTile;
}

/// What all runs of a launch have in common.
struct ClusterJobs {
  const SealView* seals;    ///< [num_seals]
  RowStore live;            ///< plane 0 is the first one clustered
  const int* model_layers;  ///< [num_planes / num_kv_heads], of the planes
  cluster::SegmentParams like;
  std::uint64_t seed;  ///< of the config
  SealScratch scratch;
  int num_kv_heads;
  int first_plane;
  int num_planes;
};
/// jobs[seal * num_planes + plane], for either kind of run.
void fill_cluster_jobs(const ClusterJobs& params, int num_seals, LargeClusterJob* jobs,
                       void* stream);
void fill_cluster_jobs(const ClusterJobs& params, int num_seals, ClusterJob* jobs, void* stream);

/// As cluster_segments(), with the same bits, over the whole grid: for prompts that are one segment.
/// Launches: 2, and 3 an iteration.
void cluster_large_segments(const LargeClusterJob* jobs, int num_jobs,
                            const cluster::SegmentParams& like, void* stream);

}  // namespace clusterkv::CLUSTERKV_DEVICE
