// SPDX-License-Identifier: Apache-2.0
//
// Stage 3 of 5: select. Score every cluster against the queries, keep the best up to the budget.
//   in  : the index, from index/; queries       out : SelectionLists, for recall/ and attend/
//   paper: arXiv 2412.03213, selection; spreads and shared vote: ours   map : docs/pipeline.md
#pragma once

#include <cstdint>

#include "clusterkv/config.hpp"
#include "kernels/common/cpu/isa.hpp"
#include "kernels/common/views.hpp"

namespace clusterkv::select {

// ---------------------------------------------------------------------------- score clusters
/// For query q of head h and cluster c, in units of log2, s the softmax scale:
///   z = s log2(e) q.centroid,   w = spread_c 1/2 s^2 sum_d q_d^2 D_d,   t = z + log2(1 + w)
/// With a soft cap t is of z and w as cap_score() makes them.
/// Writes e = 2^(t - m), m the maximum of t in the block, and the block's sums. Clusters without
/// rows have e = 0. With an int8 index the dot product is an integer sum.
struct ScoreParams {
  const SequenceView* rows;  ///< [num_rows]
  IndexStore index;
  const float* query;       ///< [query row, q_head, head_dim]; a row's heads: SequenceView
  const RowScores* scores;  ///< [num_rows], written
  int num_q_heads;
  int num_kv_heads;
  float softmax_scale;
  bool use_spread;          ///< false: w = 0
  int query_tokens = 1;     ///< of a row, at most
  float logit_softcap = 0;  ///< in natural logits; 0: none
};

/// Blocks [first_block, last_block) of one plan row and KV head.
struct ScoreItem {
  int row;
  int kv_head;
  int first_block;
  int last_block;
};

// --------------------------------------------------------------------------- select clusters
/// The prefix rule: clusters by key, highest first, ties by lowest id, until the budget is full;
/// the last one is trimmed to its first rows. Key: the vote, which is the sum over the group's heads
/// of their softmax over clusters; or z per query head. Rows with `everything` take all clusters.
struct SelectParams {
  const SequenceView* rows;  ///< [num_rows]
  IndexStore index;
  const RowScores* scores;  ///< [num_rows]
  SelectionLists lists;     ///< written
  HeadTotals* totals;       ///< [num_rows, num_q_heads * query_tokens], written
  int num_q_heads;
  int num_kv_heads;
  HeadGrouping grouping;
  int query_tokens = 1;  ///< of a row, at most
};

/// Scratch of one call, [num_blocks * kBlockClusters] each.
struct SelectScratch {
  std::uint32_t* keys;
  std::int32_t* ids;
  std::int32_t* sizes;
};

// ------------------------------------------------------------------------------------- on the CPU
/// One call does one item of work on the caller's thread.
struct CpuOps {
  static constexpr bool kHasMatrixOps = true;  ///< for Isa::kAmx
  /// Cost: reads (head_dim + 16) bytes a cluster with int8; head_dim * G multiply-adds each.
  void (*score_clusters)(const ScoreParams& params, const ScoreItem& item);
  /// One plan row and selection head.
  /// Cost: one pass over the blocks' sums, and over the scores of blocks that may have a chosen cluster; no
  /// sort.
  void (*select_clusters)(const SelectParams& params, int row, int head,
                          const SelectScratch& scratch);
  /// Fills a list's row_ids from its clusters and counts. One plan row and selection head.
  void (*expand_rows)(const SequenceView& row, const IndexStore& index, int kv_head,
                      const SelectionLists& lists, int list_row, int head);
  /// Totals of one plan row and query head over all its blocks.
  HeadTotals (*combine_blocks)(const SequenceView& row, const RowScores& scores, int kv_head,
                               int group, int member);
};

/// For the instruction set in use.
inline const CpuOps& cpu() {
  return ops_of<CpuOps>(cpu_isa());
}

}  // namespace clusterkv::select
