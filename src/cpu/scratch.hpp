// SPDX-License-Identifier: Apache-2.0
//
// The caller's workspace of a plan on the CPU, cut into arrays.
#pragma once

#include <cstdint>
#include <vector>

#include "src/plan.hpp"
#include "src/recall/slot_pool.hpp"
#include "src/step_scratch.hpp"

namespace clusterkv::cpu {

/// Arrays in the caller's workspace. R = max_rows, S = selection_heads, C = list capacity.
struct Scratch : StepScratch {
  select::SelectScratch select;      ///< arrays [clusters of all rows, S]
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
