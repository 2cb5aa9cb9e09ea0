// SPDX-License-Identifier: Apache-2.0
//
// The caller's workspace of a plan on the CPU, cut into arrays.
#pragma once

#include <cstdint>
#include <vector>

#include "clusterkv/config.hpp"
#include "clusterkv/step.hpp"
#include "kernels/attend/attend.hpp"
#include "kernels/common/carve.hpp"
#include "kernels/common/views.hpp"
#include "kernels/select/select.hpp"
#include "src/plan.hpp"
#include "src/recall/slot_pool.hpp"

namespace clusterkv::cpu {

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

struct CpuPlan final : PlanMemory {
  Scratch scratch{};
  std::vector<RowScores> scores;  ///< [row]
};

inline CpuPlan& memory_of(DecodePlan::Impl& plan) {
  return static_cast<CpuPlan&>(*plan.memory);
}
inline const CpuPlan& memory_of(const DecodePlan::Impl& plan) {
  return static_cast<const CpuPlan&>(*plan.memory);
}

}  // namespace clusterkv::cpu
