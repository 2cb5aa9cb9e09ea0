// SPDX-License-Identifier: Apache-2.0
#include "src/c_convert.hpp"

#include <algorithm>

namespace clusterkv::c {

Backend to_backend(std::int32_t backend) {
  if (backend == CKV_BACKEND_CPU) return Backend::kCpu;
  if (backend == CKV_BACKEND_CUDA) return Backend::kCuda;
  fail<BackendUnavailable>("backend: {}, expected 0 (CPU) or 1 (CUDA)", backend);
}

CacheConfig to_config(const ckv_config* config) {
  const ckv_config& c = known(config, "config");
  CacheConfig to;
  to.model = {.num_layers = c.num_layers,
              .num_q_heads = c.num_q_heads,
              .num_kv_heads = c.num_kv_heads,
              .head_dim = c.head_dim,
              .value_dim = c.value_dim,
              .kv_dtype = to_enum<DType>(c.kv_dtype),
              .softmax_scale = c.softmax_scale,
              .logit_softcap = c.logit_softcap};
  // With another number of layers the list is not read: the number will be refused.
  const bool has_layers = c.layers != nullptr && c.num_layers > 0 && c.num_layers <= 4096;
  if (has_layers) to.model.layers.assign(c.layers, c.layers + c.num_layers);
  to.cluster = {.tokens_per_cluster = c.tokens_per_cluster,
                .segment_tokens = c.segment_tokens,
                .window_tokens = c.window_tokens,
                .min_window_clusters = c.min_window_clusters,
                .kmeans_iterations = c.kmeans_iterations,
                .sink_tokens = c.sink_tokens,
                .seed = c.seed,
                .metric = to_enum<Metric>(c.metric),
                .index_dtype = to_enum<IndexDType>(c.index_dtype)};
  to.select = {.budget_tokens = c.budget_tokens,
               .grouping = to_enum<HeadGrouping>(c.grouping),
               .tail = to_enum<Tail>(c.tail),
               .tail_share = c.tail_share,
               .dense_layers = c.dense_layers,
               .dense_threshold = c.dense_threshold};
  to.store = {.residency = to_enum<Residency>(c.residency),
              .device_bytes = c.device_bytes,
              .host_bytes = c.host_bytes,
              .cold_path = c.cold_path == nullptr ? "" : c.cold_path,
              .live_tokens = c.live_tokens,
              .retention = to_enum<Retention>(c.retention),
              .retain_steps = c.retain_steps,
              .misses = to_enum<Misses>(c.misses),
              .transfer_tokens = c.transfer_tokens};
  to.max_sequences = c.max_sequences;
  to.max_tokens = c.max_tokens;
  to.check_finite = c.check_finite != 0;
  return to;
}

void fill_config(const CacheConfig& from, ckv_config& to) {
  const auto number = [](auto value) { return static_cast<std::int32_t>(value); };
  const auto& m = from.model;
  const auto& c = from.cluster;
  const auto& s = from.select;
  const auto& st = from.store;
  to = {.struct_size = sizeof to,
        .num_layers = m.num_layers,
        .num_q_heads = m.num_q_heads,
        .num_kv_heads = m.num_kv_heads,
        .head_dim = m.head_dim,
        .value_dim = m.value_dim,
        .kv_dtype = number(m.kv_dtype),
        .softmax_scale = m.softmax_scale,
        .logit_softcap = m.logit_softcap,
        .layers = m.layers.empty() ? nullptr : m.layers.data(),
        .tokens_per_cluster = c.tokens_per_cluster,
        .segment_tokens = c.segment_tokens,
        .window_tokens = c.window_tokens,
        .min_window_clusters = c.min_window_clusters,
        .kmeans_iterations = c.kmeans_iterations,
        .sink_tokens = c.sink_tokens,
        .seed = c.seed,
        .metric = number(c.metric),
        .index_dtype = number(c.index_dtype),
        .budget_tokens = s.budget_tokens,
        .grouping = number(s.grouping),
        .tail = number(s.tail),
        .tail_share = s.tail_share,
        .dense_layers = s.dense_layers,
        .dense_threshold = s.dense_threshold,
        .device_bytes = st.device_bytes,
        .host_bytes = st.host_bytes,
        .cold_path = st.cold_path.empty() ? nullptr : st.cold_path.c_str(),
        .live_tokens = st.live_tokens,
        .residency = number(st.residency),
        .retention = number(st.retention),
        .retain_steps = st.retain_steps,
        .misses = number(st.misses),
        .transfer_tokens = st.transfer_tokens,
        .check_finite = from.check_finite ? 1 : 0,
        .max_tokens = from.max_tokens,
        .max_sequences = from.max_sequences};
}

PlanLimits to_limits(const ckv_plan_limits* limits) {
  const ckv_plan_limits& l = known(limits, "limits");
  return {.max_rows = l.max_rows,
          .max_new_tokens = l.max_new_tokens,
          .max_budget_tokens = l.max_budget_tokens,
          .max_query_tokens = l.max_query_tokens == 0 ? 1 : l.max_query_tokens,
          .max_context_tokens = l.max_context_tokens,
          .prefetch = l.prefetch != 0};
}

void fill_needs(const MemoryNeeds& from, ckv_memory_needs* to) {
  sized(to, "needs") = {.struct_size = sizeof *to,
                        .device_bytes = from.device_bytes,
                        .pinned_bytes = from.pinned_bytes,
                        .host_bytes = from.host_bytes,
                        .file_bytes = from.file_bytes,
                        .workspace_bytes = from.workspace_bytes,
                        .workspace_pinned_bytes = from.workspace_pinned_bytes};
}

Workspace to_workspace(const ckv_workspace* workspace) {
  const ckv_workspace& w = known(workspace, "workspace");
  return {w.data, w.bytes, w.pinned, w.pinned_bytes};
}

void to_rows(const ckv_step_row* rows, std::size_t num_rows, std::int32_t max_rows,
             std::vector<StepRow>& to) {
  if (num_rows == 0 || max_rows < 0 || num_rows > static_cast<std::size_t>(max_rows)) {
    fail<ShapeError>("rows: {} of them, expected 1 .. {} (limits.max_rows)", num_rows, max_rows);
  }
  not_null(rows, "rows");
  to.clear();
  for (std::size_t i = 0; i < num_rows; ++i) {
    const ckv_step_row& row = known(rows + i, "rows");
    to.push_back({.id = SequenceId{row.sequence},
                  .num_new_tokens = row.num_new_tokens,
                  .num_query_tokens = row.num_query_tokens,
                  .phase = to_enum<Phase>(row.phase),
                  .budget_tokens = row.budget_tokens});
  }
}

Executor* to_executor(ckv_executor* executor) {
  return executor == nullptr ? nullptr : executor->executor.get();
}

Stream to_stream(const ckv_stream* stream, Backend backend) {
  if (stream == nullptr) return {.backend = backend};
  const ckv_stream& s = known(stream, "stream");
  return {to_backend(s.backend), s.handle, to_executor(s.executor)};
}

// ------------------------------------------------------------------------------------- stats

namespace {

void fill_step_stats(const StepStats& from, ckv_step_stats& to) {
  to = {.struct_size = sizeof to,
        .selections = from.selections,
        .dense_selections = from.dense_selections,
        .attended_tokens = from.attended_tokens,
        .sink_tokens = from.sink_tokens,
        .selected_tokens = from.selected_tokens,
        .pending_tokens = from.pending_tokens,
        .selected_clusters = from.selected_clusters,
        .scored_clusters = from.scored_clusters,
        .quad_hits = from.quad_hits,
        .quad_misses = from.quad_misses,
        .quads_in_place = from.quads_in_place,
        .copied_bytes = from.copied_bytes,
        .row_bytes = from.row_bytes,
        .index_bytes = from.index_bytes,
        .value_mean_bytes = from.value_mean_bytes,
        .estimated_clusters = from.estimated_clusters,
        .estimated_tokens = from.estimated_tokens,
        .estimates = from.estimates,
        .estimated_mass = from.estimated_mass};
}

}  // namespace

void fill_stats(const CacheStats& from, ckv_stats* stats) {
  ckv_stats& to = sized(stats, "stats");
  if (to.total != nullptr) sized(to.total, "stats.total");
  if (to.step != nullptr) sized(to.step, "stats.step");
  if (to.total != nullptr) fill_step_stats(from.total, *to.total);
  if (to.step != nullptr) fill_step_stats(from.step, *to.step);
  to = {.struct_size = sizeof to,
        .total = to.total,
        .step = to.step,
        .steps = from.steps,
        .appended_tokens = from.appended_tokens,
        .kmeans_runs = from.kmeans_runs,
        .kmeans_tokens = from.kmeans_tokens,
        .clusters = from.clusters,
        .live_sequences = from.live_sequences,
        .live_tokens = from.live_tokens,
        .held_bytes = from.held_bytes,
        .host_bytes = from.host_bytes};
}

}  // namespace clusterkv::c
