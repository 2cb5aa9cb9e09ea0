// SPDX-License-Identifier: Apache-2.0
//
// Inside a DecodePlan: the batch, and the caller's workspace cut into arrays.
#pragma once

#include <cstdint>
#include <vector>

#include "clusterkv/config.hpp"
#include "clusterkv/step.hpp"
#include "kernels/attend/attend.hpp"
#include "kernels/common/carve.hpp"
#include "kernels/common/views.hpp"
#include "kernels/select/select.hpp"
#include "src/recall/slot_pool.hpp"
#include "src/runtime/capacity.hpp"
#include "src/sequence.hpp"

namespace clusterkv {

/// Arrays in the caller's workspace. R = max_rows, S = selection_heads, C = list capacity.
struct Scratch {
  float* query;                  ///< [R, q_head, head_dim]
  SelectionLists lists;          ///< arrays [R, S] and [R, S, C]
  HeadTotals* totals;            ///< [R, q_head]
  float* e;                      ///< [blocks of all rows, q_head, kBlockClusters]
  float* z;                      ///< as e; null unless per query head
  BlockSums* block_sums;         ///< [blocks of all rows, q_head]
  select::SelectScratch select;  ///< arrays [clusters of all rows, S]
  attend::Partials partials;
  float* tail_mass;                  ///< [R, q_head]
  std::int64_t* kept;                ///< [R, S]
  std::int32_t* item_starts;         ///< [R * q_head + 1]
  recall::QuadCopy* copies;          ///< [kv_head, R * C * lists of a KV head]
  recall::RecallPlan* recall_plans;  ///< [kv_head]
  std::uint32_t* retain_from;        ///< [R]
};

Scratch carve_scratch(Carver& carver, const CacheConfig& config, const PlanLimits& limits);
std::size_t scratch_bytes(const CacheConfig& config, const PlanLimits& limits);

/// One row of the running step.
struct PlanRow {
  Sequence* sequence;  ///< null: padding
  SequenceId id;
  int num_new_tokens;
  int first_new_token;          ///< row of append()'s tensors
  std::int64_t first_position;  ///< of the new tokens in the sequence
  int query_row;                ///< row of attend()'s tensors; -1: none
};

inline namespace v0 {

struct DecodePlan::Impl {
  const void* owner = nullptr;  ///< the core that made it
  std::uint32_t number = 0;     ///< of the running step; counts plans and updates of one core
  PlanLimits limits;
  Scratch scratch{};
  int num_new_tokens = 0;
  int num_query_tokens = 0;
  std::vector<PlanRow> rows;
  std::vector<SequenceView> views;          ///< [row]
  std::vector<SequenceView> adopted_views;  ///< [row], for a caller's choice: none takes everything
  std::vector<RowScores> scores;            ///< [row]
};

}  // namespace v0
}  // namespace clusterkv
