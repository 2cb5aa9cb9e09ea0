// SPDX-License-Identifier: Apache-2.0
#include "src/step_scratch.hpp"

#include "src/runtime/capacity.hpp"

namespace clusterkv {

SelectionLists carve_lists(Carver& carver, const CacheConfig& config, const PlanLimits& limits) {
  SelectionLists lists;
  lists.selection_heads = runtime::capacity_of(config).selection_heads;
  lists.capacity = runtime::list_capacity(config, limits);
  const Size count = Size(limits.max_rows) * lists.selection_heads;
  lists.cluster_ids = carver.take<std::int32_t>(count * lists.capacity);
  lists.row_counts = carver.take<std::int32_t>(count * lists.capacity);
  lists.num_clusters = carver.take<std::int32_t>(count);
  lists.num_rows = carver.take<std::int32_t>(count);
  lists.row_ids = carver.take<std::uint32_t>(count * lists.capacity);
  return lists;
}

StepScratch carve_choice(Carver& carver, const CacheConfig& config, const PlanLimits& limits) {
  const ModelShape& m = config.model;
  const Size row_heads = Size(m.num_q_heads) * limits.max_query_tokens;
  const Size heads = row_heads * limits.max_rows;
  const Size sums = row_heads * runtime::step_capacity(config, limits).blocks;
  const bool per_query_head = config.select.grouping == HeadGrouping::kPerQueryHead;
  StepScratch s{};
  s.query = carver.take<float>(heads * m.head_dim);
  s.lists = carve_lists(carver, config, limits);
  s.totals = carver.take<HeadTotals>(heads);
  s.e = carver.take<float>(sums * kBlockClusters);
  s.z = per_query_head ? carver.take<float>(sums * kBlockClusters) : nullptr;
  s.block_sums = carver.take<BlockSums>(sums);
  return s;
}

StepScratch carve_step(Carver& carver, const CacheConfig& config, const PlanLimits& limits) {
  const ModelShape& m = config.model;
  const Size heads = Size(m.num_q_heads) * limits.max_query_tokens * limits.max_rows;
  const Size pieces = heads * attend::kMaxPieces;
  StepScratch s = carve_choice(carver, config, limits);
  s.partials.heads = carver.take<attend::PartialHead>(pieces);
  s.partials.outputs = carver.take<float>(pieces * m.value_dim);
  s.partials.num_q_heads = m.num_q_heads * limits.max_query_tokens;
  s.partials.value_dim = m.value_dim;
  s.tail_mass = carver.take<float>(heads);
  s.kept = carver.take<std::int64_t>(Size(limits.max_rows) * s.lists.selection_heads);
  return s;
}

select::ScoreParams score_params(const CacheConfig& config, const LayerMemory& memory) {
  const ModelShape& m = config.model;
  return {.rows = memory.rows,
          .index = memory.index,
          .query = memory.scratch.query,
          .scores = memory.scores,
          .num_q_heads = m.num_q_heads,
          .num_kv_heads = m.num_kv_heads,
          .softmax_scale = m.softmax_scale,
          .use_spread = config.select.tail == Tail::kSecondMoment,
          .query_tokens = memory.query_tokens,
          .logit_softcap = m.logit_softcap};
}

select::SelectParams select_params(const CacheConfig& config, const LayerMemory& memory) {
  const ModelShape& m = config.model;
  return {.rows = memory.rows,
          .index = memory.index,
          .scores = memory.scores,
          .lists = memory.scratch.lists,
          .totals = memory.scratch.totals,
          .num_q_heads = m.num_q_heads,
          .num_kv_heads = m.num_kv_heads,
          .grouping = config.select.grouping,
          .query_tokens = memory.query_tokens};
}

attend::MergeParams attend_params(const CacheConfig& config, const LayerMemory& memory,
                                  const AttentionOut& out, const TensorView& sink_logits,
                                  bool rows_part) {
  const ModelShape& m = config.model;
  const StepScratch& scratch = memory.scratch;
  return {.attend = {.rows = memory.rows,
                     .query = scratch.query,
                     .stored = memory.stored,
                     .live = memory.live,
                     .slots = memory.slots,
                     .lists = scratch.lists,
                     .all_rows = memory.dense,
                     .partials = scratch.partials,
                     .num_q_heads = m.num_q_heads,
                     .num_kv_heads = m.num_kv_heads,
                     .softmax_scale = m.softmax_scale,
                     .tail = config.select.tail,
                     .tail_share = config.select.tail_share,
                     .index = memory.index,
                     .scores = memory.scores,
                     .totals = scratch.totals,
                     .query_tokens = memory.query_tokens,
                     .logit_softcap = m.logit_softcap},
          .rows_part = rows_part,
          .tail_part = true,
          .out = out.out,
          .lse = out.lse,
          .tail_mass = scratch.tail_mass,
          .kept = scratch.kept,
          .sink_logits = sink_logits};
}

}  // namespace clusterkv
