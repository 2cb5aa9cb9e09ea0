// SPDX-License-Identifier: Apache-2.0
#include "src/cpu/stages.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/attend/count.hpp"
#include "kernels/common/tensor_io.hpp"
#include "src/attend/attend_stage.hpp"
#include "src/cpu/move_rows.hpp"
#include "src/cpu/paged_export.hpp"
#include "src/cpu/selection.hpp"
#include "src/runtime/check.hpp"
#include "src/runtime/parallel.hpp"
#include "src/saved_parts.hpp"
#include "src/select/select_stage.hpp"

namespace clusterkv::cpu {

using runtime::fail;

namespace {

MemoryResource& memory_or_default(const Resources& resources) {
  return resources.memory == nullptr ? default_memory_resource() : *resources.memory;
}

int num_rows(const LayerCall& call) {
  return static_cast<int>(call.plan.rows.size());
}

const char* find_fault(const CacheConfig& config, Rows) {
  return config.store.cold_path.empty() ? nullptr : runtime::ColdFile::find_fault();
}

std::unique_ptr<Stages> make(const CacheConfig& config, const Resources& resources, Rows rows) {
  return std::make_unique<CpuStages>(config, resources, rows);
}

}  // namespace

CpuStages::CpuStages(const CacheConfig& config, const Resources& resources, Rows rows)
    : config_(config),
      model_(config_.model),
      own_executor_(resources.executor == nullptr ? make_thread_pool() : nullptr),
      executor_(resources.executor == nullptr ? own_executor_.get() : resources.executor),
      index_(config_, runtime::capacity_of(config_), memory_or_default(resources)),
      live_(model_, runtime::capacity_of(config_).live_pages, memory_or_default(resources),
            "live rows"),
      stored_(config_, stored_pages(runtime::capacity_of(config_), rows),
              memory_or_default(resources)),
      slots_(config_, runtime::capacity_of(config_), memory_or_default(resources)),
      sealer_(config_, memory_or_default(resources)) {}

MemoryNeeds CpuStages::needs(const CacheConfig& config, const PlanLimits& limits, Rows rows) {
  const runtime::Capacity capacity = runtime::capacity_of(config);
  const auto stored = recall::StoredRows::bytes(config, stored_pages(capacity, rows));
  const Size fixed = Size(index::ClusterIndex::bytes(config, capacity)) +
                     recall::RowArena::bytes(config.model, capacity.live_pages) +
                     recall::SlotPools::bytes(config, capacity) + Sealer::initial_bytes(config);
  MemoryNeeds needs;
  needs.device_bytes = (fixed + stored.near).get();
  needs.host_bytes = stored.far;
  needs.file_bytes = stored.file;
  needs.workspace_bytes = scratch_bytes(config, limits);
  return needs;
}

void CpuStages::check_stream(const Stream& stream) const {
  if (stream.backend != Backend::kCpu) {
    fail<BackendUnavailable>("stream.backend: CUDA, expected kCpu as the cache's");
  }
}

Executor& CpuStages::executor(const Stream& stream) const {
  return stream.executor == nullptr ? *executor_ : *stream.executor;
}

// -------------------------------------------------------------------------------------- step

void CpuStages::open_plan(DecodePlan::Impl& plan, const Workspace& workspace, const Stream&) {
  auto memory = std::make_unique<CpuPlan>();
  Carver carver(static_cast<std::byte*>(workspace.data));
  memory->scratch = carve_scratch(carver, config_, plan.limits);
  memory->scores.reserve(static_cast<std::size_t>(plan.limits.max_rows));
  plan.memory = std::move(memory);
}

void CpuStages::reserve_seal(int num_tokens, int num_clusters) {
  sealer_.reserve(num_tokens, num_clusters);
}

void CpuStages::begin_step(DecodePlan::Impl& plan, std::span<const StaleQuads> stale,
                           const Stream&) {
  for (const StaleQuads& quads : stale) slots_.drop(quads.first, quads.count);
  CpuPlan& memory = memory_of(plan);
  memory.scores.clear();
  std::int64_t blocks = 0;
  for (const SequenceView& view : plan.views) {
    memory.scores.push_back(
        memory.scratch.scores_at(blocks, model_.num_q_heads, plan.limits.max_query_tokens));
    blocks += view.num_blocks;
  }
  step_ = {};
}

bool CpuStages::all_finite(const TensorView& tensor, std::int64_t first, std::int64_t count) {
  return recall::cpu().all_finite(tensor, first, count);
}

void CpuStages::append(const LayerCall& call, const TensorView& key, const TensorView& value) {
  for (const PlanRow& row : call.plan.rows) {
    if (row.sequence == nullptr) continue;
    for (const Sequence::Sealing& sealing : row.sequence->sealing()) {
      fetch_segment(row_source(call.layer), row.sequence->segment(sealing.segment),
                    row.sequence->row_pages().data(), Access::kWrite);
    }
  }
  Executor& threads = executor(call.stream);
  const int heads = model_.num_kv_heads;
  const RowStore live = live_.layer(call.layer);
  runtime::parallel_for(threads, num_rows(call) * heads, [&](int task) {
    const PlanRow& row = call.plan.rows[static_cast<std::size_t>(task / heads)];
    if (row.sequence == nullptr) return;
    for_each_run(row, [&](std::int64_t first_token, std::int64_t first_row, int num_tokens) {
      recall::cpu().append_rows({.key = key,
                                 .value = value,
                                 .first_token = first_token,
                                 .num_tokens = num_tokens,
                                 .pages = row.sequence->live_pages(),
                                 .first_row = first_row,
                                 .live = live},
                                task % heads);
    });
  });
  const SealLayer target{.live = live,
                         .stored = stored_.layer(call.layer),
                         .index = call.dense ? IndexStore{} : index_.layer(call.layer),
                         .positions = index_.positions(call.layer),
                         .positions_stride = index_.positions_stride(),
                         .model_layer = model_.layers[static_cast<std::size_t>(call.layer)],
                         .dense = call.dense};
  for (const PlanRow& row : call.plan.rows) {
    if (row.sequence != nullptr) sealer_.seal(target, *row.sequence, threads);
  }
  // After all that an executor may throw in: a call that is made again counts once.
  for (const PlanRow& row : call.plan.rows) {
    if (row.sequence != nullptr) count_sealing(call, *row.sequence);
  }
}

void CpuStages::count_sealing(const LayerCall& call, const Sequence& sequence) {
  if (call.dense) return;
  const IndexStore index = index_.layer(call.layer);
  for (const Sequence::Sealing& sealing : sequence.sealing()) {
    for (int head = 0; head < model_.num_kv_heads; ++head) {
      clusters_ += *index.record_used(head, sequence.segment(sealing.segment).record);
    }
  }
}

// ------------------------------------------------------------------------------------ select

const SequenceView* CpuStages::views(const LayerCall& call) {
  return call.adopted ? call.plan.adopted_views.data() : call.plan.views.data();
}

void CpuStages::take_query(const LayerCall& call, const TensorView& query) {
  float* to = memory_of(call.plan).scratch.query;
  const int group = model_.num_q_heads / model_.num_kv_heads;
  for (const PlanRow& row : call.plan.rows) {
    // In a row's order of heads: those that share a KV head are neighbours.
    for (int i = 0; i < row.num_query_tokens * model_.num_q_heads; ++i, to += model_.head_dim) {
      const int kv_head = i / (group * row.num_query_tokens);
      const int token = i / group % row.num_query_tokens;
      load_tensor_row(query, row.query_row + token, kv_head * group + i % group, to);
    }
  }
}

LayerMemory CpuStages::layer_memory(const LayerCall& call) const {
  const CpuPlan& memory = memory_of(call.plan);
  return {.rows = views(call),
          .scores = memory.scores.data(),
          .scratch = memory.scratch,
          .stored = stored_.layer(call.layer),
          .live = live_.layer(call.layer),
          .slots = call.dense ? SlotView{} : slots_.layer(call.layer),
          .index = call.dense ? IndexStore{} : index_.layer(call.layer),
          .dense = call.dense,
          .query_tokens = call.plan.limits.max_query_tokens};
}

void CpuStages::score(const LayerCall& call) {
  if (call.dense) return;
  select::score(score_params(config_, layer_memory(call)), num_rows(call),
                memory_of(call.plan).scratch.item_starts, executor(call.stream));
  if (call.adopted) combine_totals(call);
}

void CpuStages::combine_totals(const LayerCall& call) const {
  const CpuPlan& memory = memory_of(call.plan);
  const int max_heads = model_.num_q_heads * call.plan.limits.max_query_tokens;
  for (int row = 0; row < num_rows(call); ++row) {
    const SequenceView& view = views(call)[row];
    if (!view.is_scored()) continue;
    const RowScores& scores = memory.scores[static_cast<std::size_t>(row)];
    const int group = view.group(model_.num_q_heads, model_.num_kv_heads);
    for (int head = 0; head < group * model_.num_kv_heads; ++head) {
      memory.scratch.totals[row * max_heads + head] =
          select::cpu().combine_blocks(view, scores, head / group, group, head % group);
    }
  }
}

void CpuStages::choose(const LayerCall& call) {
  const Scratch& scratch = memory_of(call.plan).scratch;
  const SelectionLists& lists = scratch.lists;
  if (!call.dense) {
    Executor& threads = executor(call.stream);
    const select::SelectParams params = select_params(config_, layer_memory(call));
    select::choose(params, num_rows(call), scratch.select, threads);
    select::expand(params, num_rows(call), threads);
    return;
  }
  const std::int64_t num_lists = lists.list(num_rows(call), 0);
  std::fill_n(lists.cluster_ids, num_lists * lists.capacity, -1);
  std::fill_n(lists.row_counts, num_lists * lists.capacity, 0);
  std::fill_n(lists.num_clusters, num_lists, 0);
  std::fill_n(lists.num_rows, num_lists, 0);
}

void CpuStages::adopt(const LayerCall& call, const Selection& selection) {
  const SelectionReader reader(index_, call, model_.num_kv_heads, selection);
  const SelectionLists& lists = memory_of(call.plan).scratch.lists;
  for (int row = 0; row < num_rows(call); ++row) {
    for (int head = 0; head < lists.selection_heads; ++head) {
      if (reader.num_rows(row, head) <= lists.capacity) continue;
      fail<CapacityError>("selection: {} rows in a list, expected at most {} (the plan's budget)",
                          reader.num_rows(row, head), lists.capacity);
    }
  }
  copy_lists(reader, num_rows(call), lists);
  if (call.dense) return;
  select::expand(select_params(config_, layer_memory(call)), num_rows(call), executor(call.stream));
}

Selection CpuStages::selection(const LayerCall& call) const {
  const SelectionLists& lists = memory_of(call.plan).scratch.lists;
  const std::initializer_list<std::int64_t> shape = {num_rows(call), lists.selection_heads,
                                                     lists.capacity};
  return {contiguous_view(lists.cluster_ids, DType::kI32, shape),
          contiguous_view(lists.row_counts, DType::kI32, shape)};
}

// ------------------------------------------------------------------------------------ recall

void CpuStages::recall(const LayerCall& call) {
  if (!slots_.exist() || call.dense) return;
  Scratch& scratch = memory_of(call.plan).scratch;
  for (int row = 0; row < num_rows(call); ++row) {
    scratch.retain_from[row] =
        retain_from(config_.store, call.plan.rows[static_cast<std::size_t>(row)]);
  }
  slots_.recall(call.layer,
                {.rows = views(call),
                 .retain_from = scratch.retain_from,
                 .lists = scratch.lists,
                 .max_transfers = recall::max_transfers(config_.store),
                 .num_rows = num_rows(call),
                 .plan_number = call.plan.number,
                 .stored = stored_,
                 .copies = scratch.copies,
                 .plans = scratch.recall_plans},
                executor(call.stream));
  const auto quad_bytes = static_cast<std::int64_t>(recall::row_bytes(model_) * kQuadRows);
  for (int head = 0; head < model_.num_kv_heads; ++head) {
    const recall::RecallPlan& plan = scratch.recall_plans[head];
    for (StepStats* stats : {&step_, &total_}) {
      stats->quad_hits += plan.hits;
      stats->quad_misses += plan.misses;
      stats->quads_in_place += plan.in_place;
      stats->copied_bytes += plan.misses * quad_bytes;
      stats->estimated_clusters += plan.left_clusters;
      stats->estimated_tokens += plan.left_rows;
    }
  }
}

// ------------------------------------------------------------------------------------ attend

void CpuStages::attend(const LayerCall& call, const AttentionOut& out,
                       const TensorView& sink_logits, Part part) {
  const Scratch& scratch = memory_of(call.plan).scratch;
  const attend::MergeParams params =
      attend_params(config_, layer_memory(call), out, sink_logits, part == Part::kRowsAndTail);
  attend::attend(params, num_rows(call), scratch.item_starts, executor(call.stream));
  for (const PlanRow& row : call.plan.rows) {
    if (row.sequence != nullptr) continue;
    for (int token = 0; token < row.num_query_tokens; ++token) {
      attend::write_nothing(out.out, out.lse, row.query_row + token);
    }
  }
  for (StepStats* stats : {&step_, &total_}) {
    for (int row = 0; row < num_rows(call); ++row) {
      for (int head = 0; head < scratch.lists.selection_heads; ++head) {
        attend::count_list(params, row, head, *stats);
      }
    }
  }
}

// ---------------------------------------------------------------------------- fork, truncate

void CpuStages::prepare_copy(std::uint32_t page, PageUse use) const {
  const Access access = use == PageUse::kCopiedFrom ? Access::kRead : Access::kWrite;
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    for (int head = 0; head < model_.num_kv_heads; ++head) {
      row_source(layer).fetch(head, page * kPageRows, kPageRows, access);
    }
  }
}

void CpuStages::copy_pages(std::span<const PageCopy> rows, std::span<const PageCopy> live,
                           const Stream&) {
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    cpu::copy_pages(row_source(layer), rows, live);
  }
}

void CpuStages::restore_rows(const RestoredRows& rows, const Stream& stream) {
  const int heads = model_.num_kv_heads;
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    fetch_segment(row_source(layer), rows.segment, rows.row_pages, Access::kRead);
  }
  runtime::parallel_for(executor(stream), model_.num_layers * heads, [&](int plane) {
    cpu::restore_rows(row_source(plane / heads), rows, plane % heads);
  });
}

// -------------------------------------------------------------------------------- save, load

void CpuStages::visit_parts(const Sequence& sequence, PartVisitor& visitor, const Stream&) {
  const Access access = visitor.fills_parts() ? Access::kWrite : Access::kRead;
  clusterkv::visit_parts(saved_stores(access), sequence, visitor);
}

void CpuStages::check_parts(const Sequence& sequence, const Stream&) const {
  const TableReader reader{
      .copy = [](void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); },
      .wait = [] {}};
  clusterkv::check_parts(saved_stores(Access::kRead), sequence, reader);
}

SavedStores CpuStages::saved_stores(Access access) const {
  return {config_, live_, index_, [this](int layer) { return stored_.layer(layer); },
          [this, access](int layer, int head, std::uint32_t row, std::int64_t count) {
            row_source(layer).fetch(head, row, count, access);
          }};
}

// -------------------------------------------------------------------------------------- read

RowSource CpuStages::row_source(int layer) const {
  return {.live = live_.layer(layer),
          .stored = stored_.layer(layer),
          .positions = index_.positions(layer),
          .positions_stride = index_.positions_stride(),
          .num_kv_heads = model_.num_kv_heads,
          .rows = &stored_,
          .layer = layer};
}

void CpuStages::token_ids(const LayerCall& call, const Selection& selection, const TensorView& ids,
                          const TensorView& counts) const {
  const SelectionReader reader(index_, call, model_.num_kv_heads, selection);
  write_token_ids(reader, num_rows(call), ids, counts);
}

void CpuStages::to_paged(const LayerCall& call, const Selection& selection,
                         const PagedTarget& target) const {
  const SelectionReader reader(index_, call, model_.num_kv_heads, selection);
  write_paged(reader, num_rows(call), model_.num_kv_heads, target);
}

void CpuStages::read_rows(const RowRange& range, const Sequence& sequence, const TensorView& key,
                          const TensorView& value, const Stream&) const {
  cpu::read_rows(row_source(range.layer), range, sequence, key, value);
}

void CpuStages::add_counts(CacheStats& stats) const {
  stats.total = total_;
  stats.step = step_;
  stats.clusters = clusters_;
}

}  // namespace clusterkv::cpu

namespace clusterkv {

const BackendInfo& cpu_backend() {
  static constexpr BackendInfo kInfo{.missing = nullptr,
                                     .residency = Residency::kDevice,
                                     .find_fault = cpu::find_fault,
                                     .find_needs = cpu::CpuStages::needs,
                                     .make = cpu::make,
                                     .memory = default_memory_resource};
  return kInfo;
}

}  // namespace clusterkv
