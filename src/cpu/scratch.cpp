// SPDX-License-Identifier: Apache-2.0
#include "src/cpu/scratch.hpp"

#include "src/runtime/capacity.hpp"

namespace clusterkv::cpu {

Scratch carve_scratch(Carver& carver, const CacheConfig& config, const PlanLimits& limits) {
  const Capacity capacity = runtime::capacity_of(config);
  const Size rows = limits.max_rows;
  Scratch s{carve_step(carver, config, limits), {}, nullptr, nullptr, nullptr, nullptr};
  const Size clusters = Size(runtime::step_capacity(config, limits).blocks) * kBlockClusters *
                        capacity.selection_heads;
  s.select.keys = carver.take<std::uint32_t>(clusters);
  s.select.ids = carver.take<std::int32_t>(clusters);
  s.select.sizes = carver.take<std::int32_t>(clusters);
  s.item_starts = carver.take<std::int32_t>(rows * config.model.num_q_heads + 1);
  if (capacity.slots > 0) {
    s.copies = carver.take<recall::QuadCopy>(rows * capacity.selection_heads * s.lists.capacity);
    s.recall_plans = carver.take<recall::RecallPlan>(config.model.num_kv_heads);
    s.retain_from = carver.take<std::uint32_t>(rows);
  }
  return s;
}

std::size_t scratch_bytes(const CacheConfig& config, const PlanLimits& limits) {
  Carver carver(nullptr);
  carve_scratch(carver, config, limits);
  return carver.used();
}

}  // namespace clusterkv::cpu
