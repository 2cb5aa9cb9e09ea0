// SPDX-License-Identifier: Apache-2.0
//
// Stage 2 of 5: index. From a clustered segment to what select, recall and attend read.
//   in  : tokens sorted by label, from cluster/    out : blocks of the index, rows in cluster order
//   paper: arXiv 2412.03213, metadata; spreads and value means: ours   map : docs/pipeline.md
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/cpu/isa.hpp"
#include "kernels/common/views.hpp"

namespace clusterkv::index {

/// One segment of one KV head.
struct SegmentSource {
  const std::uint32_t* live_pages;
  std::int64_t first_live_row;  ///< logical live row of the segment's first token
  std::int64_t first_token;     ///< its position in the sequence
  int num_tokens;
  int kv_head;
};

/// Where the segment goes.
struct SegmentTarget {
  SegmentView segment;
  const std::uint32_t* blocks;     ///< [segment.num_blocks] blocks of the index
  const std::uint32_t* row_pages;  ///< of the row store
};

// -------------------------------------------------------------------------------- store rows
/// Moves rows to the row store in the order given, and notes which token each one is.
struct StoreParams {
  RowStore live;
  RowStore stored;                ///< null base: only positions are written
  std::uint32_t* positions;       ///< [kv_head, store row], token position of a stored row
  std::int64_t positions_stride;  ///< rows from plane to plane
  const std::int32_t* order;      ///< [num_tokens]; null: token order
};

// ------------------------------------------------------------------------------- build index
/// Fills the blocks of a segment. Empty clusters are dropped; the others keep their order.
///   centroid, value mean : mean of the cluster's keys and values, rounded to the index dtype
///   D_d      = mean over the segment's tokens of (k_d - mean_d)^2, from unrounded means
///   spread_c = mean over the d with D_d > 0 of Var_d(c) / D_d; 0 if there are none
///   value sum: of this segment alone; add_value_sum() adds the ones before
struct BuildParams {
  RowStore live;
  IndexStore index;
  int num_clusters;            ///< of the clustering, empty ones included
  const std::int32_t* order;   ///< [num_tokens]
  const std::int32_t* offset;  ///< [num_clusters + 1] in `order`
  float* variance;             ///< scratch [num_clusters, head_dim]
};

// ------------------------------------------------------------------------------------- on the CPU
/// One call does one item of work on the caller's thread.
struct CpuOps {
  void (*store_segment)(const StoreParams& params, const SegmentSource& source,
                        const SegmentTarget& target);
  void (*build_index)(const BuildParams& params, const SegmentSource& source,
                      const SegmentTarget& target);
  /// Adds the value sum of the segment before, so that a record holds that of all segments up to it.
  /// Apart from build_index, because segments are built in any order and added up in theirs.
  void (*add_value_sum)(const IndexStore& index, int kv_head, std::uint32_t record,
                        std::uint32_t previous_record);
};

/// For the instruction set in use.
inline const CpuOps& cpu() {
  return ops_of<CpuOps>(cpu_isa());
}

}  // namespace clusterkv::index
