// SPDX-License-Identifier: Apache-2.0
#include "src/layer_step.hpp"

#include <algorithm>

#include "kernels/common/tensor_io.hpp"
#include "src/runtime/check.hpp"

namespace clusterkv {

using runtime::check_tensor;
using runtime::fail;
using runtime::kFloatTypes;
using runtime::LastStride;

namespace {

/// What scoring reads of a cluster beside its centroid: scale, spread, offset. With a scale of 1 the
/// first is read all the same.
constexpr std::int64_t kClusterBytes = 12;
/// What the tail reads of a cluster beside its value mean.
constexpr std::int64_t kScaleBytes = 4;

int checked_layer(const Core& core, int layer, const DecodePlan& plan) {
  core.check_appended(layer, plan);
  return layer;
}

}  // namespace

LayerStep::LayerStep(Core& core, int layer, const DecodePlan& plan, const TensorView& query,
                     const Stream& stream)
    : core_(core),
      layer_(checked_layer(core, layer, plan)),
      model_(core.settings().model),
      select_(core.settings().select),
      handle_(plan),
      plan_(*plan.impl),
      executor_(core.executor(stream)),
      dense_(core.is_dense(layer)),
      num_rows_(plan.num_rows()),
      views_(plan_.views.data()) {
  check_tensor(
      query, {"query", {plan_.num_query_tokens, model_.num_q_heads, model_.head_dim}, kFloatTypes});
  float* to = plan_.scratch.query;
  for (int row = 0; row < plan_.num_query_tokens; ++row) {
    for (int head = 0; head < model_.num_q_heads; ++head, to += model_.head_dim) {
      load_tensor_row(query, row, head, to);
    }
  }
}

void LayerStep::check_out(const AttentionOut& out) const {
  const std::int64_t rows = plan_.num_query_tokens;
  check_tensor(out.out,
               {"out", {rows, model_.num_q_heads, model_.head_dim}, kFloatTypes, LastStride::kOne});
  if (!out.lse.empty()) check_tensor(out.lse, {"lse", {rows, model_.num_q_heads}, {DType::kF32}});
}

void LayerStep::check_args(const AttendArgs& args) const {
  if (!args.sink_logits.empty()) {
    fail<ConfigError>(
        "sink_logits: rank {}, expected none: learned sinks are not part of this version",
        args.sink_logits.rank);
  }
  check_out(args.out);
}

// ------------------------------------------------------------------------------------ select

select::ScoreParams LayerStep::score_params() const {
  return {.rows = views_,
          .index = core_.index().layer(layer_),
          .query = plan_.scratch.query,
          .scores = plan_.scores.data(),
          .num_q_heads = model_.num_q_heads,
          .num_kv_heads = model_.num_kv_heads,
          .softmax_scale = model_.softmax_scale,
          .use_spread = select_.tail == Tail::kSecondMoment};
}

select::SelectParams LayerStep::select_params() const {
  return {.rows = views_,
          .index = core_.index().layer(layer_),
          .scores = plan_.scores.data(),
          .lists = plan_.scratch.lists,
          .totals = plan_.scratch.totals,
          .num_q_heads = model_.num_q_heads,
          .num_kv_heads = model_.num_kv_heads,
          .grouping = select_.grouping};
}

void LayerStep::score() {
  if (dense_) return;
  select::score(score_params(), num_rows_, plan_.scratch.item_starts, executor_);
  if (views_ == plan_.adopted_views.data()) combine_totals();
}

void LayerStep::choose() {
  const SelectionLists& lists = plan_.scratch.lists;
  if (!dense_) {
    select::choose(select_params(), num_rows_, plan_.scratch.select, executor_);
    select::expand(select_params(), num_rows_, executor_);
    return;
  }
  const std::int64_t num_lists = lists.list(num_rows_, 0);
  std::fill_n(lists.cluster_ids, num_lists * lists.capacity, -1);
  std::fill_n(lists.row_counts, num_lists * lists.capacity, 0);
  std::fill_n(lists.num_clusters, num_lists, 0);
  std::fill_n(lists.num_rows, num_lists, 0);
}

void LayerStep::adopt(const Selection& selection) {
  const SelectionReader reader(core_, layer_, handle_, selection);
  const SelectionLists& lists = plan_.scratch.lists;
  for (int row = 0; row < num_rows_; ++row) {
    for (int head = 0; head < lists.selection_heads; ++head) {
      if (reader.num_rows(row, head) <= lists.capacity) continue;
      fail<CapacityError>("selection: {} rows in a list, expected at most {} (the plan's budget)",
                          reader.num_rows(row, head), lists.capacity);
    }
  }
  copy_lists(reader);
  views_ = plan_.adopted_views.data();
  if (!dense_) select::expand(select_params(), num_rows_, executor_);
}

void LayerStep::copy_lists(const SelectionReader& reader) {
  const SelectionLists& lists = plan_.scratch.lists;
  for (int row = 0; row < num_rows_; ++row) {
    for (int head = 0; head < lists.selection_heads; ++head) {
      // The selection may be these very lists: entry i is read before it is written.
      const int clusters = reader.num_clusters(row, head);
      lists.num_clusters[lists.list(row, head)] = clusters;
      lists.num_rows[lists.list(row, head)] = static_cast<int>(reader.num_rows(row, head));
      for (int i = 0; i < clusters; ++i) {
        const std::int32_t id = reader.cluster(row, head, i);
        const std::int32_t count = reader.count(row, head, i);
        lists.clusters_of(row, head)[i] = id;
        lists.counts_of(row, head)[i] = count;
      }
    }
  }
}

void LayerStep::combine_totals() {
  const int group = model_.num_q_heads / model_.num_kv_heads;
  for (int row = 0; row < num_rows_; ++row) {
    if (!views_[row].is_scored()) continue;
    for (int q_head = 0; q_head < model_.num_q_heads; ++q_head) {
      float sum = 0.0F;
      plan_.scratch.totals[row * model_.num_q_heads + q_head] =
          select::cpu().combine_blocks(views_[row], plan_.scores[static_cast<std::size_t>(row)],
                                       q_head / group, group, q_head % group, &sum);
    }
  }
}

Selection LayerStep::selection() const {
  const SelectionLists& lists = plan_.scratch.lists;
  const std::initializer_list<std::int64_t> shape = {num_rows_, lists.selection_heads,
                                                     lists.capacity};
  return {contiguous_view(lists.cluster_ids, DType::kI32, shape),
          contiguous_view(lists.row_counts, DType::kI32, shape)};
}

// ------------------------------------------------------------------------------------ recall

void LayerStep::recall() {
  recall::SlotPools& slots = core_.slots();
  if (!slots.exist() || dense_) return;
  const StoreConfig& store = core_.settings().store;
  Scratch& scratch = plan_.scratch;
  for (int row = 0; row < num_rows_; ++row) {
    const Sequence* sequence = plan_.rows[static_cast<std::size_t>(row)].sequence;
    const bool retains = store.retention == Retention::kRetainSteps && sequence != nullptr;
    scratch.retain_from[row] = retains ? sequence->past_plan(store.retain_steps) : 0;
  }
  slots.recall(layer_,
               {.retain_from = scratch.retain_from,
                .lists = scratch.lists,
                .num_rows = num_rows_,
                .plan_number = plan_.number,
                .stored = core_.stored(layer_),
                .copies = scratch.copies,
                .plans = scratch.recall_plans},
               executor_);
  StepStats& step = core_.stats().step;
  const std::size_t quad_bytes = recall::row_bytes(model_) * kQuadRows;
  for (int head = 0; head < model_.num_kv_heads; ++head) {
    const recall::RecallPlan& plan = scratch.recall_plans[head];
    for (StepStats* stats : {&step, &core_.stats().total}) {
      stats->quad_hits += plan.hits;
      stats->quad_misses += plan.misses;
      stats->quads_in_place += plan.in_place;
      stats->copied_bytes += plan.misses * static_cast<std::int64_t>(quad_bytes);
    }
  }
}

// ------------------------------------------------------------------------------------ attend

attend::AttendParams LayerStep::attend_params() const {
  return {.rows = views_,
          .query = plan_.scratch.query,
          .stored = core_.stored(layer_),
          .live = core_.live(layer_),
          .slots = dense_ ? SlotView{} : core_.slots().layer(layer_),
          .lists = plan_.scratch.lists,
          .all_rows = dense_,
          .partials = plan_.scratch.partials,
          .num_q_heads = model_.num_q_heads,
          .num_kv_heads = model_.num_kv_heads,
          .softmax_scale = model_.softmax_scale,
          .tail = select_.tail,
          .tail_share = select_.tail_share,
          .index = dense_ ? IndexStore{} : core_.index().layer(layer_),
          .scores = plan_.scores.data(),
          .totals = plan_.scratch.totals};
}

void LayerStep::attend(const AttentionOut& out, Part part) {
  const attend::MergeParams params{.attend = attend_params(),
                                   .rows_part = part == Part::kRowsAndTail,
                                   .tail_part = true,
                                   .out = out.out,
                                   .lse = out.lse,
                                   .tail_mass = plan_.scratch.tail_mass,
                                   .kept = plan_.scratch.kept};
  attend::attend(params, num_rows_, plan_.scratch.item_starts, executor_);
  for (const PlanRow& row : plan_.rows) {
    if (row.sequence == nullptr && row.query_row >= 0) {
      attend::write_nothing(out.out, out.lse, row.query_row);
    }
  }
  count(part);
}

// ------------------------------------------------------------------------------------- count

void LayerStep::count(Part part) {
  const SelectionLists& lists = plan_.scratch.lists;
  for (StepStats* stats : {&core_.stats().step, &core_.stats().total}) {
    for (int row = 0; row < num_rows_; ++row) {
      if (views_[row].query_row < 0) continue;
      for (int head = 0; head < lists.selection_heads; ++head) {
        count_list(row, head, part, *stats);
      }
    }
  }
}

void LayerStep::count_list(int row, int head, Part part, StepStats& stats) const {
  const SelectionLists& lists = plan_.scratch.lists;
  const SequenceView& view = views_[row];
  const int served = model_.num_q_heads / lists.selection_heads;
  const std::int64_t selected = dense_ ? view.num_stored : lists.num_rows[lists.list(row, head)];
  const bool scored = !dense_ && view.is_scored();
  const bool estimated = scored && select_.tail != Tail::kNone;
  const std::int64_t element = dense_ ? 0
                                      : static_cast<std::int64_t>(IndexStore::element_bytes(
                                            core_.settings().cluster.index_dtype));
  if (scored) {
    const IndexStore index = core_.index().layer(layer_);
    std::int64_t clusters = 0;
    for (int s = 0; s < view.num_segments; ++s) {
      const int kv_head = head / (lists.selection_heads / model_.num_kv_heads);
      clusters += *index.record_used(kv_head, view.segments[s].record);
    }
    stats.scored_clusters += clusters;
    stats.index_bytes += clusters * (model_.head_dim * element + kClusterBytes);
  }
  ++stats.selections;
  stats.dense_selections += dense_ || view.everything ? 1 : 0;
  if (part == Part::kRowsAndTail) {
    const std::int64_t attended = view.num_sinks + selected + view.num_pending;
    stats.attended_tokens += attended;
    stats.sink_tokens += view.num_sinks;
    stats.selected_tokens += selected;
    stats.pending_tokens += view.num_pending;
    stats.row_bytes += attended * static_cast<std::int64_t>(recall::row_bytes(model_));
  }
  stats.selected_clusters += dense_ ? 0 : lists.num_clusters[lists.list(row, head)];
  if (!estimated) return;
  const std::int64_t kept = plan_.scratch.kept[lists.list(row, head)];
  stats.value_mean_bytes += kept * (model_.head_dim * element + kScaleBytes);
  for (int q_head = head * served; q_head < (head + 1) * served; ++q_head) {
    ++stats.estimates;
    stats.estimated_mass += plan_.scratch.tail_mass[row * model_.num_q_heads + q_head];
  }
}

}  // namespace clusterkv
