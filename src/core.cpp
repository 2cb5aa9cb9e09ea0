// SPDX-License-Identifier: Apache-2.0
#include "src/core.hpp"

#include <algorithm>

#include "kernels/cluster/rules.hpp"
#include "kernels/recall/recall.hpp"
#include "kernels/select/rules.hpp"
#include "src/runtime/check.hpp"
#include "src/runtime/check_config.hpp"
#include "src/runtime/parallel.hpp"

namespace clusterkv {

using runtime::check_tensor;
using runtime::fail;
using runtime::kFloatTypes;

namespace {

long long number(SequenceId id) {
  return static_cast<long long>(id);
}

}  // namespace

Core::Core(const CacheConfig& config, const Resources& resources, Rows rows)
    : config_(config),
      resolved_(checked_config(config, resources.backend, rows)),
      rows_(rows),
      capacity_(runtime::capacity_of(resolved_)),
      own_executor_(resources.executor == nullptr ? make_thread_pool() : nullptr),
      executor_(resources.executor == nullptr ? own_executor_.get() : resources.executor),
      pools_(capacity_),
      index_(resolved_, capacity_,
             resources.memory == nullptr ? default_memory_resource() : *resources.memory),
      live_(resolved_.model, capacity_.live_pages,
            resources.memory == nullptr ? default_memory_resource() : *resources.memory,
            "live rows"),
      stored_(resolved_.model, stored_pages(capacity_, rows),
              resources.memory == nullptr ? default_memory_resource() : *resources.memory,
              "row store"),
      slots_(resolved_, capacity_,
             resources.memory == nullptr ? default_memory_resource() : *resources.memory),
      sealer_(resolved_,
              resources.memory == nullptr ? default_memory_resource() : *resources.memory) {
  sequences_.reserve(static_cast<std::size_t>(std::min(config.max_sequences, 1024)));
  seal_sizes_.reserve(static_cast<std::size_t>(capacity_.records));
}

// --------------------------------------------------------------------------------- sequences

SequenceId Core::add_sequence() {
  if (static_cast<int>(sequences_.size()) >= resolved_.max_sequences) {
    fail<CapacityError>("add_sequence: {} sequences are live, expected fewer than max_sequences {}",
                        sequences_.size(), resolved_.max_sequences);
  }
  const SequenceId id{next_id_};
  sequences_.emplace(id, std::make_unique<Sequence>(id, resolved_, capacity_));
  ++next_id_;
  return id;
}

void Core::remove(SequenceId id) {
  Sequence* sequence = find_or_null(id);
  if (sequence == nullptr) fail<UnknownSequence>("id: sequence {} is not live", number(id));
  for (const std::uint32_t page : sequence->row_pages()) slots_.drop_page(page);
  live_tokens_ -= sequence->length();
  sequence->release(pools_);
  sequences_.erase(id);
}

Sequence* Core::find_or_null(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? nullptr : found->second.get();
}

const Sequence& Core::find(SequenceId id) const {
  const Sequence* sequence = find_or_null(id);
  if (sequence == nullptr) fail<UnknownSequence>("id: sequence {} is not live", number(id));
  return *sequence;
}

// -------------------------------------------------------------------------------------- step

DecodePlan Core::plan(std::span<const StepRow> rows, const PlanLimits& limits,
                      const Workspace& workspace) {
  runtime::check_limits(limits);
  check_rows(rows, limits);
  const std::size_t needed = workspace_bytes(resolved_, limits);
  const bool aligned = reinterpret_cast<std::uintptr_t>(workspace.data) % 64 == 0;
  if (workspace.data == nullptr || workspace.bytes < needed || !aligned) {
    fail<CapacityError>("workspace: {} bytes at {}, expected at least {} bytes aligned to 64",
                        workspace.bytes, fmt::ptr(workspace.data), needed);
  }
  DecodePlan plan;
  plan.impl = std::make_unique<DecodePlan::Impl>();
  plan.impl->owner = this;
  plan.impl->limits = limits;
  Carver carver(static_cast<std::byte*>(workspace.data));
  plan.impl->scratch = carve_scratch(carver, resolved_, limits);
  const auto max_rows = static_cast<std::size_t>(limits.max_rows);
  plan.impl->rows.reserve(max_rows);
  plan.impl->views.reserve(max_rows);
  plan.impl->adopted_views.reserve(max_rows);
  plan.impl->scores.reserve(max_rows);
  begin_step(*plan.impl, rows);
  return plan;
}

void Core::update(DecodePlan& plan, std::span<const StepRow> rows) {
  if (plan.impl == nullptr || plan.impl->owner != this) {
    fail<StepError>("plan: of another object, expected one made by this object's plan()");
  }
  check_rows(rows, plan.impl->limits);
  begin_step(*plan.impl, rows);
}

void Core::check_row(const StepRow& row, const PlanLimits& limits) const {
  if (row.num_new_tokens < 1) {
    fail<ShapeError>("rows: num_new_tokens {}, expected >= 1", row.num_new_tokens);
  }
  if (row.num_query_tokens < 0 || row.num_query_tokens > 1) {
    fail<ShapeError>("rows: num_query_tokens {}, expected 0 or 1 (blocks are not supported yet)",
                     row.num_query_tokens);
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
  const int missing = sequence.plan_number() == 0 ? -1 : sequence.missing_layer();
  if (missing >= 0) {
    fail<StepError>("rows: sequence {} lacks append() of layer {} in its last step", number(row.id),
                    missing);
  }
}

void Core::check_rows(std::span<const StepRow> rows, const PlanLimits& limits) {
  if (rows.empty() || rows.size() > static_cast<std::size_t>(limits.max_rows)) {
    fail<ShapeError>("rows: {} of them, expected 1 .. {} (limits.max_rows)", rows.size(),
                     limits.max_rows);
  }
  std::int64_t new_tokens = 0;
  std::int64_t stored_tokens = 0;
  ++check_number_;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const StepRow& row = rows[i];
    check_row(row, limits);
    new_tokens += row.num_new_tokens;
    if (row.id == kNoSequence) continue;
    stored_tokens += row.num_new_tokens;
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
  if (stored_tokens > resolved_.max_tokens - live_tokens_) {
    fail<CapacityError>("rows: {} new tokens beside {} live ones, expected at most max_tokens {}",
                        stored_tokens, live_tokens_, resolved_.max_tokens);
  }
  for (const StepRow& row : rows) {
    if (row.id == kNoSequence) continue;
    find(row.id).decide_seals(row, seal_sizes_);
    for (const int n : seal_sizes_) {
      sealer_.reserve(n, segment_clusters(resolved_.cluster, n, row.phase));
    }
  }
}

void Core::begin_step(DecodePlan::Impl& plan, std::span<const StepRow> rows) {
  plan.number = ++plan_number_;
  plan.rows.clear();
  plan.views.clear();
  plan.adopted_views.clear();
  plan.scores.clear();
  plan.num_new_tokens = 0;
  plan.num_query_tokens = 0;
  std::int64_t blocks = 0;
  const int q_heads = resolved_.model.num_q_heads;
  for (const StepRow& row : rows) {
    Sequence* sequence = row.id == kNoSequence ? nullptr : find_or_null(row.id);
    const std::int64_t before = sequence == nullptr ? 0 : sequence->length();
    const int query_row = row.num_query_tokens > 0 ? plan.num_query_tokens : -1;
    plan.rows.push_back(
        {sequence, row.id, row.num_new_tokens, plan.num_new_tokens, before, query_row});
    SequenceView view{};
    view.query_row = -1;
    if (sequence != nullptr) {
      sequence->begin_step(row, plan.number, pools_);
      view = sequence->view();
      view.query_row = query_row;
      view.budget_tokens =
          row.budget_tokens > 0 ? row.budget_tokens : resolved_.select.budget_tokens;
      view.everything = select::is_dense(sequence->length(), view.num_stored, view.budget_tokens,
                                         resolved_.select.dense_threshold);
      live_tokens_ += row.num_new_tokens;
      stats_.appended_tokens += row.num_new_tokens;
    }
    plan.views.push_back(view);
    view.everything = view.num_stored == 0;
    plan.adopted_views.push_back(view);
    const std::int64_t clusters = blocks * kBlockClusters;
    float* z = plan.scratch.z;
    plan.scores.push_back({plan.scratch.e + clusters * q_heads,
                           z == nullptr ? nullptr : z + clusters * q_heads,
                           plan.scratch.block_sums + blocks * q_heads});
    blocks += view.num_blocks;
    plan.num_new_tokens += row.num_new_tokens;
    plan.num_query_tokens += row.num_query_tokens;
  }
  stats_.step = {};
  ++stats_.steps;
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
                    sequence == nullptr ? "removed" : "planned again");
  }
}

void Core::check_appended(int layer, const DecodePlan& plan) const {
  check_step(layer, plan);
  for (const PlanRow& row : plan.impl->rows) {
    if (row.sequence == nullptr || row.sequence->was_appended(layer)) continue;
    fail<StepError>("layer: {} was not appended in this step, expected append() first", layer);
  }
}

void Core::check_append(int layer, const DecodePlan& plan, const TensorView& key,
                        const TensorView& value) {
  check_step(layer, plan);
  const ModelShape& m = resolved_.model;
  const std::int64_t tokens = plan.impl->num_new_tokens;
  check_tensor(key, {"key", {tokens, m.num_kv_heads, m.head_dim}, kFloatTypes});
  const bool may_lack_values = rows_ == Rows::kElsewhere && value.empty();
  if (!may_lack_values) {
    check_tensor(value, {"value", {tokens, m.num_kv_heads, m.head_dim}, kFloatTypes});
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
          recall::cpu().all_finite(*tensor, row.first_new_token, row.num_new_tokens)) {
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
  Executor& threads = executor(stream);
  const int heads = resolved_.model.num_kv_heads;
  const int num_rows = plan.num_rows();
  runtime::parallel_for(threads, num_rows * heads, [&](int task) {
    const PlanRow& row = plan.impl->rows[static_cast<std::size_t>(task / heads)];
    if (row.sequence == nullptr) return;
    const Sequence& s = *row.sequence;
    // A step's tokens may begin among the sinks; the rest lies at another place.
    const std::int64_t end = row.first_position + row.num_new_tokens;
    for (std::int64_t first = row.first_position; first < end;) {
      const std::int64_t last =
          first < s.num_sinks() ? std::min<std::int64_t>(end, s.num_sinks()) : end;
      recall::cpu().append_rows({.key = key,
                                 .value = value,
                                 .first_token = row.first_new_token + first - row.first_position,
                                 .num_tokens = static_cast<int>(last - first),
                                 .pages = s.live_pages(),
                                 .first_row = s.live_row(first),
                                 .live = live(layer)},
                                task % heads);
      first = last;
    }
  });
  const bool dense = is_dense(layer);
  const SealLayer target{.live = live(layer),
                         .stored = stored(layer),
                         .index = dense ? IndexStore{} : index_.layer(layer),
                         .positions = index_.positions(layer),
                         .positions_stride = index_.positions_stride(),
                         .model_layer = resolved_.model.layers[static_cast<std::size_t>(layer)],
                         .dense = dense};
  for (const PlanRow& row : plan.impl->rows) {
    if (row.sequence != nullptr) sealer_.seal(target, *row.sequence, threads);
  }
  for (const PlanRow& row : plan.impl->rows) {
    if (row.sequence == nullptr) continue;
    drop_shared_quads(*row.sequence, layer);
    row.sequence->mark_appended(layer);
    count_sealing(*row.sequence, layer);
  }
  values_ = value.empty() ? Values::kMissing : Values::kGiven;
}

void Core::drop_shared_quads(const Sequence& sequence, int layer) {
  for (const Sequence::Sealing& sealing : sequence.sealing()) {
    const std::int64_t first = sequence.segment(sealing.segment).first_row;
    // A segment may begin inside the last quad of the one before, which may lie in a slot already.
    if (first % kQuadRows != 0) {
      slots_.drop_quad(layer, paged_row(sequence.row_pages().data(), first));
    }
  }
}

void Core::count_sealing(const Sequence& sequence, int layer) {
  if (is_dense(layer)) return;
  const IndexStore index = index_.layer(layer);
  for (const Sequence::Sealing& sealing : sequence.sealing()) {
    const SegmentView& segment = sequence.segment(sealing.segment);
    for (int head = 0; head < resolved_.model.num_kv_heads; ++head) {
      ++stats_.kmeans_runs;
      stats_.kmeans_tokens += segment.num_rows;
      stats_.clusters += *index.record_used(head, segment.record);
    }
  }
}

// ------------------------------------------------------------------------------------ stores

bool Core::is_dense(int layer) const {
  return runtime::is_dense_layer(resolved_, layer);
}

Executor& Core::executor(const Stream& stream) {
  if (stream.backend != Backend::kCpu) {
    fail<BackendUnavailable>("stream.backend: CUDA, expected kCpu as the cache's");
  }
  return stream.executor == nullptr ? *executor_ : *stream.executor;
}

CacheStats Core::read_stats() const {
  CacheStats stats = stats_;
  stats.live_sequences = static_cast<std::int64_t>(sequences_.size());
  stats.live_tokens = live_tokens_;
  return stats;
}

}  // namespace clusterkv
