// SPDX-License-Identifier: Apache-2.0
//
// Stage 1 of 5: cluster. K-means over the keys of one segment of one KV head.
//   in  : keys in the live store         out : labels, and tokens sorted by label, for index/
//   paper: arXiv 2412.03213, clustering  map : docs/pipeline.md
#pragma once

#include <cstddef>
#include <cstdint>

#include "clusterkv/config.hpp"
#include "kernels/common/cpu/isa.hpp"
#include "kernels/common/views.hpp"

namespace clusterkv::cluster {

/// The keys of a run of tokens: logical rows [first_row, first_row + num_tokens) of a page table.
struct KeyRun {
  RowStore store;
  const std::uint32_t* pages;
  std::int64_t first_row;
  int num_tokens;
  int kv_head;
};

// ------------------------------------------------------------------------------------ assign
/// labels[i] = argmax over clusters of  dot(key_i, centroid_c) - bias_c,  ties to the lowest id.
struct AssignParams {
  KeyRun keys;
  int num_clusters;
  const float* centroids;  ///< panels [ceil(C / kPanel), head_dim, kPanel], see pack_centroids
  const float* bias;       ///< [ceil(C / kPanel) * kPanel]; +inf for padding
  std::int32_t* labels;    ///< [num_tokens]
  void* tiles;             ///< scratch of assign_tiles_bytes(), 64-aligned
};
inline constexpr int kPanel = 16;
/// For instruction sets with matrix units.
std::size_t assign_tiles_bytes(int num_clusters, int head_dim);

/// Centroids as assign reads them: normalised for the cosine, with bias |c|^2 / 2 for L2.
struct PackParams {
  const float* centroids;  ///< [num_clusters, head_dim]
  int num_clusters;
  int head_dim;
  Metric metric;
  float* panels;  ///< as AssignParams::centroids; padding is 0
  float* bias;
};

// ------------------------------------------------------------------------------ order tokens
/// The stable counting sort of tokens by label: the order in which rows are summed and stored.
struct OrderParams {
  const std::int32_t* labels;  ///< [num_tokens]
  int num_tokens;
  int num_clusters;
  std::int32_t* order;   ///< [num_tokens], tokens by (label, position)
  std::int32_t* offset;  ///< [num_clusters + 1], first entry of each label in `order`
};

// -------------------------------------------------------------------------- update centroids
/// centroid_c = mean of its keys, summed in fp32 in the order of `order`. An empty cluster keeps
/// the centroid it had.
struct UpdateParams {
  KeyRun keys;
  int num_clusters;
  const std::int32_t* order;
  const std::int32_t* offset;
  float* centroids;  ///< [num_clusters, head_dim], read and written
};

// --------------------------------------------------------------------------- cluster segment
/// All iterations of one K-means run: start, then `iterations` times assign, order, update. Labels
/// are the last assignment's.
struct SegmentParams {
  KeyRun keys;
  int num_clusters;  ///< 1 .. num_tokens
  Metric metric;
  int iterations;
  bool random_start;         ///< else evenly spaced tokens
  std::uint64_t start_seed;  ///< of rules.hpp
};

/// Scratch and results of one run; carved from one allocation of segment_scratch_bytes().
struct SegmentScratch {
  float* centroids;  ///< [num_clusters, head_dim]
  float* panels;
  float* bias;
  std::byte* tiles;
  std::int32_t* labels;  ///< result [num_tokens]
  std::int32_t* order;   ///< result [num_tokens]
  std::int32_t* offset;  ///< result [num_clusters + 1]
};
std::size_t segment_scratch_bytes(int num_tokens, int num_clusters, int head_dim);
SegmentScratch carve_segment_scratch(std::byte* memory, int num_tokens, int num_clusters,
                                     int head_dim);

// ------------------------------------------------------------------------------------- on the CPU
/// One call does one item of work on the caller's thread.
struct CpuOps {
  static constexpr bool kHasMatrixOps = true;  ///< for Isa::kAmx
  /// Cost: num_tokens * num_clusters * head_dim multiply-adds; no matrix of scores.
  void (*assign)(const AssignParams& params);
  void (*pack_centroids)(const PackParams& params);
  void (*order_tokens)(const OrderParams& params);
  void (*update_centroids)(const UpdateParams& params);
  /// Cost: iterations times assign. Source: paper, with a fixed number of iterations (ours: so that
  /// the work can be captured and is the same on every run).
  void (*cluster_segment)(const SegmentParams& params, const SegmentScratch& scratch);
};

/// For the instruction set in use.
inline const CpuOps& cpu() {
  return ops_of<CpuOps>(cpu_isa());
}

}  // namespace clusterkv::cluster
