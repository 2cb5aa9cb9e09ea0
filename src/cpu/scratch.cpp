// SPDX-License-Identifier: Apache-2.0
#include "src/cpu/scratch.hpp"

#include "src/runtime/capacity.hpp"

namespace clusterkv::cpu {

Scratch carve_scratch(Carver& carver, const CacheConfig& config, const PlanLimits& limits) {
  const ModelShape& m = config.model;
  const Capacity capacity = runtime::capacity_of(config);
  const Size rows = limits.max_rows;
  const Size q_heads = m.num_q_heads;
  const Size heads = capacity.selection_heads;
  const Size head_dim = m.head_dim;
  const int list = runtime::list_capacity(config, limits);
  const Size entries = rows * heads * list;
  const Size blocks = capacity.blocks;
  const Size clusters = blocks * kBlockClusters;
  const bool per_query_head = config.select.grouping == HeadGrouping::kPerQueryHead;
  const Size pieces = rows * q_heads * attend::kMaxPieces;

  Scratch s{};
  s.query = carver.take<float>(rows * q_heads * head_dim);
  s.lists.selection_heads = capacity.selection_heads;
  s.lists.capacity = list;
  s.lists.cluster_ids = carver.take<std::int32_t>(entries);
  s.lists.row_counts = carver.take<std::int32_t>(entries);
  s.lists.num_clusters = carver.take<std::int32_t>(rows * heads);
  s.lists.num_rows = carver.take<std::int32_t>(rows * heads);
  s.lists.row_ids = carver.take<std::uint32_t>(entries);
  s.totals = carver.take<HeadTotals>(rows * q_heads);
  s.e = carver.take<float>(clusters * q_heads);
  s.z = per_query_head ? carver.take<float>(clusters * q_heads) : nullptr;
  s.block_sums = carver.take<BlockSums>(blocks * q_heads);
  s.select.keys = carver.take<std::uint32_t>(clusters * heads);
  s.select.ids = carver.take<std::int32_t>(clusters * heads);
  s.select.sizes = carver.take<std::int32_t>(clusters * heads);
  s.partials.heads = carver.take<attend::PartialHead>(pieces);
  s.partials.outputs = carver.take<float>(pieces * head_dim);
  s.partials.num_q_heads = m.num_q_heads;
  s.partials.head_dim = m.head_dim;
  s.tail_mass = carver.take<float>(rows * q_heads);
  s.kept = carver.take<std::int64_t>(rows * heads);
  s.item_starts = carver.take<std::int32_t>(rows * q_heads + 1);
  if (capacity.slots > 0) {
    s.copies = carver.take<recall::QuadCopy>(entries);
    s.recall_plans = carver.take<recall::RecallPlan>(m.num_kv_heads);
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
