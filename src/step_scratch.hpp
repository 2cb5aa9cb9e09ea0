// SPDX-License-Identifier: Apache-2.0
//
// What every backend has for a step and a layer, wherever it lies, and the parameters of ops from it.
#pragma once

#include <cstdint>

#include "clusterkv/config.hpp"
#include "clusterkv/step.hpp"
#include "kernels/attend/attend.hpp"
#include "kernels/common/carve.hpp"
#include "kernels/common/views.hpp"
#include "kernels/select/select.hpp"

namespace clusterkv {

/// Arrays in the caller's workspace. R = max_rows, S = selection_heads, C = list capacity; `q_head` counts
/// the heads of max_query_tokens tokens.
struct StepScratch {
  float* query;           ///< [R, q_head, head_dim]
  SelectionLists lists;   ///< arrays [R, S] and [R, S, C]
  HeadTotals* totals;     ///< [R, q_head]
  float* e;               ///< [blocks of all rows, q_head, kBlockClusters]
  float* z;               ///< as e; null unless per query head
  BlockSums* block_sums;  ///< [blocks of all rows, q_head]
  attend::Partials partials;
  float* tail_mass;    ///< [R, q_head]
  std::int64_t* kept;  ///< [R, S]

  /// Of a plan row, after `blocks` blocks of the rows before.
  [[nodiscard]] RowScores scores_at(std::int64_t blocks, int num_q_heads, int query_tokens) const {
    if (e == nullptr) return {};
    const std::int64_t sums = blocks * num_q_heads * query_tokens;
    return {e + sums * kBlockClusters, z == nullptr ? nullptr : z + sums * kBlockClusters,
            block_sums + sums};
  }
};

SelectionLists carve_lists(Carver& carver, const CacheConfig& config, const PlanLimits& limits);
/// What score and choose need; the rest is null.
StepScratch carve_choice(Carver& carver, const CacheConfig& config, const PlanLimits& limits);
StepScratch carve_step(Carver& carver, const CacheConfig& config, const PlanLimits& limits);

/// One layer of one step.
struct LayerMemory {
  const SequenceView* rows;
  const RowScores* scores;  ///< [row]
  const StepScratch& scratch;
  RowStore stored;
  RowStore live;
  SlotView slots;
  IndexStore index;  ///< not read if dense
  bool dense;
  int query_tokens;  ///< of the plan's rows, at most
};

select::ScoreParams score_params(const CacheConfig& config, const LayerMemory& memory);
select::SelectParams select_params(const CacheConfig& config, const LayerMemory& memory);
attend::MergeParams attend_params(const CacheConfig& config, const LayerMemory& memory,
                                  const AttentionOut& out, const TensorView& sink_logits,
                                  bool rows_part);

}  // namespace clusterkv
