// SPDX-License-Identifier: Apache-2.0
#include "src/core.hpp"

#include <algorithm>

#include "kernels/cluster/rules.hpp"
#include "kernels/select/rules.hpp"
#include "src/runtime/check.hpp"
#include "src/runtime/check_config.hpp"

namespace clusterkv {

using runtime::check_tensor;
using runtime::fail;
using runtime::kFloatTypes;

namespace {

void check_workspace(const Workspace& workspace, const MemoryNeeds& needs) {
  const auto check = [](const char* name, const void* data, std::size_t bytes, std::size_t needed) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(data) % 64 == 0;
    if (needed == 0 || (data != nullptr && bytes >= needed && aligned)) return;
    fail<CapacityError>("{}: {} bytes at {}, expected at least {} bytes aligned to 64", name, bytes,
                        fmt::ptr(data), needed);
  };
  check("workspace", workspace.data, workspace.bytes, needs.workspace_bytes);
  check("workspace.pinned", workspace.pinned, workspace.pinned_bytes, needs.workspace_pinned_bytes);
}

}  // namespace

Core::Core(const CacheConfig& config, const Resources& resources, Rows rows)
    : config_(config),
      resolved_(checked_config(config, resources.backend, rows)),
      backend_(resources.backend),
      rows_(rows),
      capacity_(runtime::capacity_of(resolved_)),
      pools_(capacity_),
      stages_(backend_info(backend_).make(resolved_, resources, rows)) {
  sequences_.reserve(static_cast<std::size_t>(std::min(config.max_sequences, 1024)));
  seal_sizes_.reserve(static_cast<std::size_t>(capacity_.records));
}

// -------------------------------------------------------------------------------------- step

DecodePlan Core::plan(std::span<const StepRow> rows, const PlanLimits& limits,
                      const Workspace& workspace, const Stream& stream) {
  stages_->check_stream(stream);
  check_not_capturing(stream);
  runtime::check_limits(limits);
  check_rows(rows, limits, false);
  check_workspace(workspace, find_needs(config_, backend_, limits, rows_));
  DecodePlan plan;
  plan.impl = std::make_unique<DecodePlan::Impl>();
  plan.impl->owner = this;
  plan.impl->limits = limits;
  plan.impl->captured.resize(static_cast<std::size_t>(resolved_.model.num_layers));
  stages_->open_plan(*plan.impl, workspace, stream);
  const auto max_rows = static_cast<std::size_t>(limits.max_rows);
  plan.impl->rows.reserve(max_rows);
  plan.impl->views.reserve(max_rows);
  plan.impl->adopted_views.reserve(max_rows);
  begin_step(*plan.impl, rows, stream);
  return plan;
}

void Core::update(DecodePlan& plan, std::span<const StepRow> rows, const Stream& stream) {
  stages_->check_stream(stream);
  if (plan.impl == nullptr || plan.impl->owner != this) {
    fail<StepError>("plan: of another object, expected one made by this object's plan()");
  }
  check_not_capturing(stream);
  const std::vector<bool>& captured = plan.impl->captured;
  check_rows(rows, plan.impl->limits,
             std::find(captured.begin(), captured.end(), true) != captured.end());
  begin_step(*plan.impl, rows, stream);
}

void Core::check_row(const StepRow& row, const PlanLimits& limits) const {
  if (row.num_new_tokens < 1) {
    fail<ShapeError>("rows: num_new_tokens {}, expected >= 1", row.num_new_tokens);
  }
  const bool is_alone = resolved_.select.grouping == HeadGrouping::kPerQueryHead;
  const int most_queries =
      std::min({limits.max_query_tokens, row.num_new_tokens, is_alone ? 1 : 16});
  if (row.num_query_tokens < 0 || row.num_query_tokens > most_queries) {
    fail<ShapeError>(
        "rows: num_query_tokens {}, expected 0 .. {} (limits.max_query_tokens, num_new_tokens, or "
        "1 with kPerQueryHead)",
        row.num_query_tokens, most_queries);
  }
  if (row.phase > Phase::kPrefillLast) {
    fail<ShapeError>("rows: phase {}, expected kDecode, kPrefill or kPrefillLast",
                     static_cast<int>(row.phase));
  }
  const int most =
      limits.max_budget_tokens > 0 ? limits.max_budget_tokens : resolved_.select.budget_tokens;
  if (row.budget_tokens < 0 || row.budget_tokens > most) {
    fail<ShapeError>("rows: budget_tokens {}, expected 0 .. {} (limits.max_budget_tokens)",
                     row.budget_tokens, most);
  }
  if (row.id == kNoSequence) return;
  const Sequence& sequence = find(row.id);
  const int missing = sequence.missing_layer();
  if (missing >= 0) {
    fail<StepError>("rows: sequence {} lacks append() of layer {} in its last step", number(row.id),
                    missing);
  }
}

void Core::check_not_capturing(const Stream& stream) const {
  if (!stages_->is_capturing(stream)) return;
  fail<StepError>(
      "stream: records a graph, expected plan(), update(), fork() and truncate() outside of it");
}

void Core::check_rows(std::span<const StepRow> rows, const PlanLimits& limits, bool is_captured) {
  if (rows.empty() || rows.size() > static_cast<std::size_t>(limits.max_rows)) {
    fail<ShapeError>("rows: {} of them, expected 1 .. {} (limits.max_rows)", rows.size(),
                     limits.max_rows);
  }
  std::int64_t new_tokens = 0;
  std::int64_t stored_tokens = 0;
  std::int64_t context_tokens = 0;
  ++check_number_;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const StepRow& row = rows[i];
    check_row(row, limits);
    new_tokens += row.num_new_tokens;
    if (row.id == kNoSequence) continue;
    stored_tokens += row.num_new_tokens;
    context_tokens += find(row.id).length() + row.num_new_tokens;
    const int before = find_or_null(row.id)->claim(check_number_, static_cast<int>(i));
    if (before >= 0) {
      fail<ShapeError>("rows: sequence {} is in rows {} and {}, expected once", number(row.id),
                       before, i);
    }
  }
  if (new_tokens > limits.max_new_tokens) {
    fail<CapacityError>("rows: {} new tokens, expected at most {} (limits.max_new_tokens)",
                        new_tokens, limits.max_new_tokens);
  }
  if (stored_tokens > resolved_.max_tokens - pools_.tokens) {
    fail<CapacityError>("rows: {} new tokens beside {} live ones, expected at most max_tokens {}",
                        stored_tokens, pools_.tokens, resolved_.max_tokens);
  }
  const std::int64_t most_context = runtime::context_tokens(resolved_, limits);
  if (context_tokens > most_context) {
    fail<CapacityError>(
        "rows: {} tokens in their sequences, expected at most {} (limits.max_context_tokens, or "
        "max_tokens)",
        context_tokens, most_context);
  }
  check_live_pages(rows);
  check_row_pages(rows);
  pools_.reserve_copies(static_cast<std::size_t>(limits.max_rows), capacity_.sink_pages);
  for (const StepRow& row : rows) {
    if (row.id == kNoSequence) continue;
    find(row.id).decide_seals(row, seal_sizes_);
    if (is_captured && row.phase != Phase::kDecode && !seal_sizes_.empty()) {
      fail<StepError>(
          "rows: a prompt of sequence {} fills a segment, expected a plan without a graph",
          number(row.id));
    }
    for (const int n : seal_sizes_) {
      stages_->reserve_seal(n, segment_clusters(resolved_.cluster, n, row.phase));
    }
  }
}

/// Rows give pages back and take others in their order. A page that several rows share is counted as if
/// each had to copy it, and none gave it back.
void Core::check_live_pages(std::span<const StepRow> rows) const {
  if (resolved_.store.live_tokens == 0) return;  // room for all tokens, whoever shares them
  std::int64_t free = pools_.live.num_free();
  for (const StepRow& row : rows) {
    if (row.id == kNoSequence) continue;
    const Sequence::LivePages pages = find(row.id).decide_live_pages(row, pools_);
    free += pages.freed;
    const std::int64_t wanted = pages.taken + pages.copied;
    if (wanted > free) {
      fail<CapacityError>(
          "rows: {} new tokens of sequence {} want {} more pages of {} pending tokens, expected at "
          "most "
          "{} (store.live_tokens)",
          row.num_new_tokens, number(row.id), wanted, kPageRows, free);
    }
    free -= wanted;
  }
}

/// A page that several rows share is counted as if each had to copy it. Copies go to some of the next free
/// pages.
void Core::check_row_pages(std::span<const StepRow> rows) {
  std::int64_t taken = 0;
  bool copies = false;
  for (const StepRow& row : rows) {
    if (row.id == kNoSequence) continue;
    const Sequence::RowPages pages = find(row.id).decide_row_pages(row, pools_, seal_sizes_);
    taken += pages.taken;
    if (capacity_.host_is_bound && taken > pools_.rows.num_free()) {
      fail<CapacityError>(
          "rows: {} new tokens of sequence {} fill segments in {} more pages of {} tokens, "
          "expected "
          "at most {} (store.host_bytes)",
          row.num_new_tokens, number(row.id), taken, kPageRows, pools_.rows.num_free());
    }
    if (!pages.copied) continue;
    stages_->prepare_copy(*pages.copied, PageUse::kCopiedFrom);
    copies = true;
  }
  if (!copies) return;
  pools_.rows.for_each_free(
      taken, [&](std::uint32_t page) { stages_->prepare_copy(page, PageUse::kCopiedTo); });
}

void Core::begin_step(DecodePlan::Impl& plan, std::span<const StepRow> rows, const Stream& stream) {
  plan.number = ++plan_number_;
  plan.rows.clear();
  plan.views.clear();
  plan.adopted_views.clear();
  plan.num_new_tokens = 0;
  plan.num_query_tokens = 0;
  for (const StepRow& row : rows) {
    Sequence* sequence = row.id == kNoSequence ? nullptr : find_or_null(row.id);
    const std::int64_t before = sequence == nullptr ? 0 : sequence->length();
    const int query_row = row.num_query_tokens > 0 ? plan.num_query_tokens : -1;
    plan.rows.push_back({sequence, row.id, row.num_new_tokens, plan.num_new_tokens, before,
                         query_row, row.num_query_tokens, row.phase});
    SequenceView view{};
    view.query_row = -1;
    if (sequence != nullptr) {
      sequence->begin_step(row, plan.number, pools_);
      for (int layer = 0; layer < resolved_.model.num_layers; ++layer) {
        if (plan.captured[static_cast<std::size_t>(layer)]) sequence->mark_appended(layer);
      }
      count_sealing(*sequence);
      view = sequence->view();
      view.query_row = query_row;
      view.num_query_tokens = std::max(1, row.num_query_tokens);
      view.budget_tokens =
          row.budget_tokens > 0 ? row.budget_tokens : resolved_.select.budget_tokens;
      view.everything = select::is_dense(sequence->length(), view.num_stored, view.budget_tokens,
                                         resolved_.select.dense_threshold);
      stats_.appended_tokens += row.num_new_tokens;
    }
    plan.views.push_back(view);
    view.everything = view.num_stored == 0;
    plan.adopted_views.push_back(view);
    plan.num_new_tokens += row.num_new_tokens;
    plan.num_query_tokens += row.num_query_tokens;
  }
  ++stats_.steps;
  if (!pools_.row_copies.empty() || !pools_.live_copies.empty()) {
    stages_->copy_pages(pools_.row_copies, pools_.live_copies, stream);
    pools_.row_copies.clear();
    pools_.live_copies.clear();
  }
  stages_->begin_step(plan, pools_.stale.ranges(), stream);
  pools_.stale.clear();
}

void Core::check_step(int layer, const DecodePlan& plan) const {
  if (layer < 0 || layer >= resolved_.model.num_layers) {
    fail<ShapeError>("layer: {}, expected 0 .. {}", layer, resolved_.model.num_layers - 1);
  }
  if (plan.impl == nullptr || plan.impl->owner != this) {
    fail<StepError>("plan: of another object, expected one made by this object's plan()");
  }
  for (const PlanRow& row : plan.impl->rows) {
    if (row.id == kNoSequence) continue;
    const Sequence* sequence = find_or_null(row.id);
    if (sequence != nullptr && sequence->plan_number() == plan.impl->number) continue;
    fail<StepError>("plan: stale, sequence {} was {}", number(row.id),
                    sequence == nullptr            ? "removed"
                    : sequence->plan_number() == 0 ? "truncated"
                                                   : "planned again");
  }
}

LayerCall Core::layer_call(int layer, const DecodePlan& plan, const Stream& stream) const {
  check_step(layer, plan);
  stages_->check_stream(stream);
  for (const PlanRow& row : plan.impl->rows) {
    if (row.sequence == nullptr || row.sequence->was_appended(layer)) continue;
    fail<StepError>("layer: {} was not appended in this step, expected append() first", layer);
  }
  return {layer, *plan.impl, stream, runtime::is_dense_layer(resolved_, layer)};
}

void Core::check_append(int layer, const DecodePlan& plan, const TensorView& key,
                        const TensorView& value) {
  check_step(layer, plan);
  const ModelShape& m = resolved_.model;
  const std::int64_t tokens = plan.impl->num_new_tokens;
  check_tensor(key, {"key", {tokens, m.num_kv_heads, m.head_dim}, kFloatTypes}, backend_);
  const bool may_lack_values = rows_ == Rows::kElsewhere && value.empty();
  if (!may_lack_values) {
    check_tensor(value, {"value", {tokens, m.num_kv_heads, m.value_dim}, kFloatTypes}, backend_);
  }
  if (values_ != Values::kUnknown && (values_ == Values::kMissing) != value.empty()) {
    fail<ShapeError>("value: {}, expected as in the appends before",
                     value.empty() ? "empty" : "not empty");
  }
  for (const PlanRow& row : plan.impl->rows) {
    if (row.sequence == nullptr) continue;
    if (row.sequence->was_appended(layer)) {
      fail<StepError>("layer: {} was appended already in this step", layer);
    }
    if (!resolved_.check_finite) continue;
    for (const TensorView* tensor : {&key, &value}) {
      if (tensor->empty() ||
          stages_->all_finite(*tensor, row.first_new_token, row.num_new_tokens)) {
        continue;
      }
      fail<ValueError>("{}: NaN or infinity for sequence {}, expected finite values",
                       tensor == &key ? "key" : "value", number(row.id));
    }
  }
}

void Core::append(int layer, const DecodePlan& plan, const TensorView& key, const TensorView& value,
                  const Stream& stream) {
  check_append(layer, plan, key, value);
  stages_->check_stream(stream);
  stages_->append({layer, *plan.impl, stream, runtime::is_dense_layer(resolved_, layer)}, key,
                  value);
  for (const PlanRow& row : plan.impl->rows) {
    if (row.sequence != nullptr) row.sequence->mark_appended(layer);
  }
  if (stages_->is_capturing(stream)) plan.impl->captured[static_cast<std::size_t>(layer)] = true;
  values_ = value.empty() ? Values::kMissing : Values::kGiven;
}

void Core::prefetch(int layer, const DecodePlan& plan, const TensorView& query_hint,
                    const Stream& stream) {
  check_step(layer, plan);
  stages_->check_stream(stream);
  if (!plan.impl->limits.prefetch) {
    fail<StepError>("plan: made without limits.prefetch, expected true for prefetch()");
  }
  const std::vector<bool>& captured = plan.impl->captured;
  if (!stages_->is_capturing(stream) &&
      std::find(captured.begin(), captured.end(), true) != captured.end()) {
    fail<StepError>(
        "stream: records no graph, expected prefetch() of a captured step inside of it");
  }
  const ModelShape& m = resolved_.model;
  const std::int64_t rows = plan.impl->num_query_tokens;
  check_tensor(query_hint, {"query_hint", {rows, m.num_q_heads, m.head_dim}, kFloatTypes},
               backend_);
  if (runtime::is_dense_layer(resolved_, layer)) return;
  stages_->prefetch({layer, *plan.impl, stream, false}, query_hint);
}

void Core::count_sealing(const Sequence& sequence) {
  const int clustered = runtime::count_clustered_layers(resolved_);
  const std::int64_t runs = std::int64_t{clustered} * resolved_.model.num_kv_heads;
  for (const Sequence::Sealing& sealing : sequence.sealing()) {
    stats_.kmeans_runs += runs;
    stats_.kmeans_tokens += runs * sequence.segment(sealing.segment).num_rows;
  }
}

// -------------------------------------------------------------------------------------- read

void Core::read_rows(const RowRange& range, SequenceId id, const TensorView& key,
                     const TensorView& value, const Stream& stream) const {
  const ModelShape& m = resolved_.model;
  if (range.layer < 0 || range.layer >= m.num_layers) {
    fail<ShapeError>("layer: {}, expected 0 .. {}", range.layer, m.num_layers - 1);
  }
  const Sequence& sequence = find(id);
  if (range.first < 0 || range.first > range.last || range.last > sequence.length()) {
    fail<ShapeError>("first, last: {}, {}, expected 0 <= first <= last <= {}", range.first,
                     range.last, sequence.length());
  }
  if (!sequence.was_appended(range.layer)) {
    fail<StepError>("layer: {} was not appended in this step, expected append() first",
                    range.layer);
  }
  stages_->check_stream(stream);
  const std::int64_t tokens = range.last - range.first;
  const auto check = [&](const TensorView& tensor, const char* name, int dim) {
    check_tensor(tensor,
                 {name, {tokens, m.num_kv_heads, dim}, kFloatTypes, runtime::LastStride::kOne},
                 backend_);
  };
  check(key, "key", m.head_dim);
  check(value, "value", m.value_dim);
  stages_->read_rows(range, sequence, key, value, stream);
}

CacheStats Core::read_stats() const {
  CacheStats stats = stats_;
  stages_->add_counts(stats);
  stats.live_sequences = static_cast<std::int64_t>(sequences_.size());
  stats.live_tokens = pools_.tokens;
  stats.held_bytes = find_held_bytes(resolved_, pools_, rows_);
  stats.host_bytes = find_host_bytes(resolved_, pools_);
  return stats;
}

}  // namespace clusterkv
