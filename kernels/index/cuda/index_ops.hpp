// SPDX-License-Identifier: Apache-2.0
//
// Stage 2 of 5, index, on a device: many segments a launch. Pointers inside the parameters are device
// addresses; the contracts are those of index/index.hpp. Rows are f16 or bf16.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/backend.hpp"
#include "kernels/common/cuda/seal_view.hpp"
#include "kernels/index/index.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// One clustered segment of one KV head.
struct IndexJob {
  index::SegmentSource source;
  index::SegmentTarget target;
  int num_clusters;            ///< of the clustering, empty ones included
  const std::int32_t* order;   ///< [num_tokens]
  const std::int32_t* offset;  ///< [num_clusters + 1] in `order`
  std::int32_t* used;          ///< scratch [num_clusters]
  float* variance;             ///< scratch [num_clusters, head_dim]
  float* value_sum;            ///< scratch [num_clusters, value_dim]
};

/// What all segments of a launch have in common.
struct IndexJobs {
  const SealView* seals;  ///< [num_seals]
  SealScratch scratch;
  int first_plane;
  int num_planes;
  bool in_token_order;  ///< dense layers: rows are stored only
};
/// jobs[seal * num_planes + plane] and previous[…]. Their kv_head is the plane: stores and indexes handed
/// on with them begin at plane 0.
void fill_index_jobs(const IndexJobs& params, int num_seals, IndexJob* jobs,
                     std::uint32_t* previous, void* stream);

/// Adds the used clusters of all jobs to `total`.
void count_clusters(const IndexStore& index, const IndexJob* jobs, int num_jobs,
                    std::int64_t* total, void* stream);

/// What no job exceeds.
struct IndexShape {
  int num_jobs;
  int max_tokens;
  int max_clusters;
  void* stream;
};

/// Same bits as the CPU's build_index() of every job. `jobs` is a device array.
void build_index(const RowStore& live, const IndexStore& index, const IndexJob* jobs,
                 const IndexShape& shape);

/// The CPU's store_segment() of every job. `params.order` is not read: each job has its own; null there
/// means token order.
void store_segments(const index::StoreParams& params, const IndexJob* jobs,
                    const IndexShape& shape);

/// The CPU's add_value_sum() of jobs `first`, `first + stride`, … in this order: those of one KV head.
/// `previous` [num_jobs] are the records before; a job whose own record it is has none.
void add_value_sums(const IndexStore& index, const IndexJob* jobs, const std::uint32_t* previous,
                    int num_kv_heads, const IndexShape& shape);

}  // namespace clusterkv::CLUSTERKV_DEVICE
