// SPDX-License-Identifier: Apache-2.0
#include "src/cuda/stages.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/attend/cuda/attend_ops.hpp"
#include "src/runtime/capacity.hpp"
#include "src/runtime/check.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

using runtime::fail;

namespace {

namespace ops = clusterkv::CLUSTERKV_DEVICE;

MemoryResource& memory_or_default(const Resources& resources) {
  return resources.memory == nullptr ? device_memory() : *resources.memory;
}

const char* find_fault(const CacheConfig& config, Rows) {
  if (config.model.kv_dtype == DType::kF32) {
    return "model.kv_dtype: expected kF16 or kBF16 with CUDA";
  }
  if (config.check_finite) return "check_finite: expected false with CUDA";
  if (!config.store.cold_path.empty()) return "store.cold_path: not with CUDA, expected none";
  if (config.model.num_layers * config.model.num_kv_heads > 65535) {
    return "model.num_layers: expected at most 65535 layers by KV heads with CUDA";
  }
  return nullptr;
}

/// Tables of the pages that restore_rows() reads and writes.
Size moved_pages_bytes(const runtime::Capacity& capacity) {
  return (Size(capacity.row_pages) + capacity.live_pages) * sizeof(std::uint32_t);
}

std::unique_ptr<Stages> make(const CacheConfig& config, const Resources& resources, Rows rows) {
  return std::make_unique<CudaStages>(config, resources, rows);
}

}  // namespace

// ------------------------------------------------------------------------------ construction

CudaStages::CudaStages(const CacheConfig& config, const Resources& resources, Rows rows)
    : config_(config),
      model_(config_.model),
      memory_(memory_or_default(resources)),
      capacity_(runtime::capacity_of(config_)),
      num_dense_(runtime::count_dense_layers(config_)),
      index_(config_, capacity_, memory_, {Device::kCuda}),
      live_(model_, capacity_.live_pages, memory_, "live rows", {Device::kCuda}),
      stored_(config_, stored_pages(capacity_, rows), memory_, {Device::kCuda}, {Device::kPinned}),
      slots_(config_, memory_),
      sealer_(config_, memory_),
      moved_pages_(memory_, moved_pages_bytes(capacity_).get(), "pages of a cut segment",
                   {Device::kCuda}),
      counts_(memory_, sizeof(Counts), "counters", {Device::kCuda}),
      prefetches_(model_.num_layers) {
  fill_async(counts_.data(), 0, counts_.bytes(), side_.get());
  slots_.clear(side_.get());
  wait_for(side_.get());
}

CudaStages::~CudaStages() {
  // Memory goes back to its resource only when nothing reads it any more.
  try {
    wait_for_all();
  } catch (const Error&) {
    // The device is lost: there is nothing to wait for.
  }
}

MemoryNeeds CudaStages::needs(const CacheConfig& config, const PlanLimits& limits, Rows rows) {
  const runtime::Capacity capacity = runtime::capacity_of(config);
  const auto stored = recall::StoredRows::bytes(config, stored_pages(capacity, rows));
  Carver scratch(nullptr);
  carve_scratch(scratch, config, limits);
  MemoryNeeds needs;
  needs.device_bytes =
      (Size(index::ClusterIndex::bytes(config, capacity)) +
       recall::RowArena::bytes(config.model, capacity.live_pages) + SlotMemory::bytes(config) +
       Sealer::initial_bytes(config) + moved_pages_bytes(capacity) + sizeof(Counts) + stored.near)
          .get();
  needs.pinned_bytes = stored.far;
  needs.workspace_bytes = scratch.used();
  Carver staging(nullptr);
  for (int i = 0; i < 2; ++i) staging.take<std::byte>(tables_bytes(config, limits));
  needs.workspace_pinned_bytes = staging.used();
  return needs;
}

void CudaStages::check_stream(const Stream& stream) const {
  if (stream.backend != Backend::kCuda) {
    fail<BackendUnavailable>("stream.backend: kCpu, expected kCuda as the cache's");
  }
}

bool CudaStages::is_capturing(const Stream& stream) const {
  return ops::is_capturing(stream.handle);
}

// -------------------------------------------------------------------------------------- step

void CudaStages::open_plan(DecodePlan::Impl& plan, const Workspace& workspace,
                           const Stream& stream) {
  if (plan.limits.max_rows > 65535) {
    fail<ShapeError>("limits.max_rows: {}, expected at most 65535 with CUDA", plan.limits.max_rows);
  }
  auto memory = std::make_unique<CudaPlan>(sealed_, prefetches_.last());
  Carver carver(static_cast<std::byte*>(workspace.data));
  memory->scratch = carve_scratch(carver, config_, plan.limits);
  Carver tables(memory->scratch.tables);
  memory->tables = carve_tables(tables, plan.limits);
  memory->scratch.select.first_slice = memory->tables.first_slice;
  memory->scratch.ahead.select.first_slice = memory->tables.first_slice;
  Carver staging(static_cast<std::byte*>(workspace.pinned));
  for (std::byte*& part : memory->staging) {
    part = staging.take<std::byte>(tables_bytes(config_, plan.limits));
  }
  memory->sequence_tables.reserve(static_cast<std::size_t>(plan.limits.max_rows));
  memory->host_seals.reserve(static_cast<std::size_t>(capacity_.records));
  memory->seal_sizes.reserve(static_cast<std::size_t>(capacity_.records));
  const std::size_t lists = static_cast<std::size_t>(plan.limits.max_rows) *
                            static_cast<std::size_t>(capacity_.selection_heads) *
                            sizeof(std::uint32_t);
  fill_async(memory->scratch.select.arrived, 0, lists, stream.handle);
  fill_async(memory->scratch.attend_arrived, 0, lists, stream.handle);
  if (memory->scratch.ahead.select.arrived != nullptr) {
    fill_async(memory->scratch.ahead.select.arrived, 0, lists, stream.handle);
  }
  plan.memory = std::move(memory);
}

void CudaStages::reserve_seal(int num_tokens, int num_clusters) {
  if (sealer_.has_room(num_tokens, num_clusters)) return;
  wait_for(side_.get());
  sealer_.reserve(num_tokens, num_clusters);
}

void CudaStages::begin_step(DecodePlan::Impl& plan, std::span<const StaleQuads> stale,
                            const Stream& stream) {
  sealed_.hold(stream.handle);  // this step reads what the last one sealed
  prefetches_.hold_all(stream.handle);
  write_tables(plan, stale, stream.handle);
  fill_async(&counts()->step, 0, sizeof(StepStats), stream.handle);
  CudaPlan& memory = memory_of(plan);
  if (memory.num_decode_seals == 0) return;
  // Windows hold tokens of earlier steps only, so they are clustered beside this step's layers.
  const std::span<const SealSize> sizes(memory.seal_sizes.data(),
                                        static_cast<std::size_t>(memory.num_decode_seals));
  appended_.record(stream.handle);
  appended_.hold(side_.get());
  seal(seal_target(true, 0, num_dense_), memory.seals, sizes);
  seal(seal_target(false, num_dense_, model_.num_layers - num_dense_), memory.seals, sizes);
  sealed_.record(side_.get());
}

// ------------------------------------------------------------------------------------ append

bool CudaStages::all_finite(const TensorView&, std::int64_t, std::int64_t) {
  return true;  // find_fault() refuses check_finite
}

void CudaStages::append(const LayerCall& call, const TensorView& key, const TensorView& value) {
  CudaPlan& memory = memory_of(call.plan);
  void* stream = call.stream.handle;
  append_rows({.key = key,
               .value = value,
               .first_token = 0,
               .num_tokens = 0,
               .pages = nullptr,
               .first_row = 0,
               .live = live_.layer(call.layer)},
              memory.tables.append_jobs, 2 * call.plan.limits.max_rows,
              call.plan.limits.max_new_tokens, stream);
  const std::span<const SealSize> sizes =
      std::span<const SealSize>(memory.seal_sizes)
          .subspan(static_cast<std::size_t>(memory.num_decode_seals));
  if (sizes.empty()) return;
  if (ops::is_capturing(stream)) {
    fail<StepError>("plan: a prompt fills a segment, expected no stream that records a graph");
  }
  appended_.record(stream);
  appended_.hold(side_.get());
  seal(seal_target(call.dense, call.layer, 1), memory.seals + memory.num_decode_seals, sizes);
  sealed_.record(side_.get());
}

SealTarget CudaStages::seal_target(bool dense, int first_layer, int num_layers) const {
  const int base = dense ? 0 : num_dense_;
  if (num_layers == 0) return {};
  return {.live = live_.layer(base),
          .stored = stored_.layer(base),
          .index = dense ? IndexStore{} : index_.layer(base),
          .positions = index_.positions(base),
          .positions_stride = index_.positions_stride(),
          .dense = dense,
          .first_plane = (first_layer - base) * model_.num_kv_heads,
          .num_planes = num_layers * model_.num_kv_heads};
}

void CudaStages::seal(const SealTarget& target, const SealView* seals,
                      std::span<const SealSize> sizes) {
  if (target.num_planes == 0) return;
  sealer_.seal(target, seals, sizes, &counts()->clusters, side_.get());
}

// ------------------------------------------------------------------------------------ select

const SequenceView* CudaStages::views(const LayerCall& call) {
  const FixedTables& tables = memory_of(call.plan).tables;
  return call.adopted ? tables.adopted_views : tables.views;
}

ChoiceScratch& CudaStages::scratch_of(const LayerCall& call) {
  Scratch& scratch = memory_of(call.plan).scratch;
  return call.ahead ? scratch.ahead : scratch;
}

PlanShape CudaStages::shape_of(const LayerCall& call) const {
  // A captured launch serves later steps too, whose sequences are longer.
  int most = static_cast<int>(capacity_.blocks);
  if (!is_capturing(call.stream)) {
    most = 0;
    for (const SequenceView& view : call.plan.views) most = std::max(most, view.num_blocks);
  }
  return {call.plan.limits.max_rows, most, call.stream.handle};
}

void CudaStages::take_query(const LayerCall& call, const TensorView& query) {
  const CudaPlan& memory = memory_of(call.plan);
  const PlanLimits& limits = call.plan.limits;
  load_query({.query = query,
              .rows = memory.tables.views,
              .num_kv_heads = model_.num_kv_heads,
              .query_tokens = limits.max_query_tokens,
              .to = scratch_of(call).query},
             {limits.max_rows, 0, call.stream.handle});
}

LayerMemory CudaStages::layer_memory(const LayerCall& call) const {
  const CudaPlan& memory = memory_of(call.plan);
  return {.rows = views(call),
          .scores = call.ahead ? memory.tables.ahead_scores : memory.tables.scores,
          .scratch = scratch_of(call),
          .stored = stored_.layer(call.layer),
          .live = live_.layer(call.layer),
          .slots = call.dense ? SlotView{} : slots_.view(call.layer),
          .index = call.dense ? IndexStore{} : index_.layer(call.layer),
          .dense = call.dense,
          .query_tokens = call.plan.limits.max_query_tokens};
}

void CudaStages::score(const LayerCall& call) {
  if (call.dense) return;
  const Scratch& scratch = memory_of(call.plan).scratch;
  const LayerMemory layer = layer_memory(call);
  score_clusters(score_params(config_, layer), shape_of(call));
  if (!call.adopted) return;
  // Totals come with a choice.
  select::SelectParams params = select_params(config_, layer);
  params.lists = scratch.unwanted;
  select_clusters(params, scratch.select, shape_of(call));
}

void CudaStages::choose(const LayerCall& call) {
  const ChoiceScratch& scratch = scratch_of(call);
  if (!call.dense) {
    select_clusters(select_params(config_, layer_memory(call)), scratch.select, shape_of(call));
    return;
  }
  const SelectionLists& lists = scratch.lists;
  const auto num_lists = static_cast<std::size_t>(lists.list(call.plan.limits.max_rows, 0));
  const std::size_t entries = num_lists * static_cast<std::size_t>(lists.capacity);
  void* stream = call.stream.handle;
  fill_async(lists.cluster_ids, 0xff, entries * sizeof(std::int32_t), stream);
  fill_async(lists.row_counts, 0, entries * sizeof(std::int32_t), stream);
  fill_async(lists.num_clusters, 0, num_lists * sizeof(std::int32_t), stream);
  fill_async(lists.num_rows, 0, num_lists * sizeof(std::int32_t), stream);
}

void CudaStages::check_selection(const LayerCall& call, const Selection& selection) const {
  const auto rows = static_cast<std::int64_t>(call.plan.rows.size());
  runtime::check_tensor(selection.cluster_ids,
                        {"selection.cluster_ids", {rows, selection_heads(), -1}, {DType::kI32}},
                        Backend::kCuda);
  runtime::check_tensor(selection.row_counts,
                        {"selection.row_counts",
                         {rows, selection_heads(), selection.cluster_ids.shape[2]},
                         {DType::kI32}},
                        Backend::kCuda);
}

PlanShape CudaStages::rows_of(const LayerCall& call) {
  return {static_cast<int>(call.plan.rows.size()), 0, call.stream.handle};
}

void CudaStages::adopt(const LayerCall& call, const Selection& selection) {
  check_selection(call, selection);
  if (call.dense) return choose(call);
  // Lists of all rows that a plan can have: recall reads them all.
  const PlanShape shape{call.plan.limits.max_rows, 0, call.stream.handle};
  const select::SelectParams params = select_params(config_, layer_memory(call));
  adopt_lists(params, selection.cluster_ids, selection.row_counts, shape);
  expand_rows(params, shape);
}

Selection CudaStages::selection(const LayerCall& call) const {
  const SelectionLists& lists = memory_of(call.plan).scratch.lists;
  const std::initializer_list<std::int64_t> shape = {
      static_cast<std::int64_t>(call.plan.rows.size()), lists.selection_heads, lists.capacity};
  Selection result{contiguous_view(lists.cluster_ids, DType::kI32, shape),
                   contiguous_view(lists.row_counts, DType::kI32, shape)};
  result.cluster_ids.device = result.row_counts.device = {Device::kCuda};
  return result;
}

// ------------------------------------------------------------------------------------ recall

void CudaStages::recall(const LayerCall& call) {
  if (!slots_.exist() || call.dense) return;
  const FixedTables& tables = memory_of(call.plan).tables;
  const ChoiceScratch& scratch = scratch_of(call);
  if (!call.ahead) prefetches_.hold(call.layer, call.stream.handle);
  recall_quads(
      {.pools = slots_.layer(call.layer),
       .stored = stored_.layer(call.layer),
       .lists = scratch.lists,
       .retain_from = tables.retain_from,
       .copies = scratch.copies,
       .counts = scratch.recall_counts,
       .num_rows = call.plan.limits.max_rows,
       .num_kv_heads = model_.num_kv_heads,
       .plan_number = tables.plan_number,
       .stats = &counts()->step,
       .rows = views(call),
       .max_transfers = call.ahead ? recall::kNoLimit : recall::max_transfers(config_.store)},
      call.stream.handle);
}

void CudaStages::prefetch(const LayerCall& call, const TensorView& query) {
  if (!slots_.exist()) return;
  const Stream side{Backend::kCuda, prefetches_.begin(call.stream.handle)};
  const LayerCall ahead{
      .layer = call.layer, .plan = call.plan, .stream = side, .dense = false, .ahead = true};
  take_query(ahead, query);
  score(ahead);
  choose(ahead);
  recall(ahead);
  prefetches_.end(call.layer);
}

// ------------------------------------------------------------------------------------ attend

void CudaStages::attend(const LayerCall& call, const AttentionOut& out,
                        const TensorView& sink_logits, Part part) {
  const CudaPlan& memory = memory_of(call.plan);
  const attend::MergeParams params =
      attend_params(config_, layer_memory(call), out, sink_logits, part == Part::kRowsAndTail);
  ops::attend(params, memory.scratch.attend_arrived, shape_of(call));
  count_step(params, &counts()->step, shape_of(call));
}

// -------------------------------------------------------------------------------------- read

TokenLists CudaStages::token_lists(const LayerCall& call, const Selection& selection) const {
  check_selection(call, selection);
  const CudaPlan& memory = memory_of(call.plan);
  const SelectionLists& lists = memory.scratch.unwanted;
  if (!call.dense) {
    const PlanShape shape = rows_of(call);
    select::SelectParams params = select_params(config_, layer_memory(call));
    params.lists = lists;
    adopt_lists(params, selection.cluster_ids, selection.row_counts, shape);
    expand_rows(params, shape);
  }
  return {.rows = memory.tables.views,
          .positions = index_.positions(call.layer),
          .positions_stride = index_.positions_stride(),
          .lists = lists,
          .num_kv_heads = model_.num_kv_heads,
          .all_rows = call.dense};
}

void CudaStages::token_ids(const LayerCall& call, const Selection& selection, const TensorView& ids,
                           const TensorView& counts) const {
  const PlanShape shape = rows_of(call);
  runtime::check_tensor(ids, {"ids", {shape.num_rows, selection_heads(), -1}, {DType::kI32}},
                        Backend::kCuda);
  runtime::check_tensor(counts, {"counts", {shape.num_rows, selection_heads()}, {DType::kI32}},
                        Backend::kCuda);
  write_token_ids({.from = token_lists(call, selection), .ids = ids, .counts = counts}, shape);
}

void CudaStages::to_paged(const LayerCall& call, const Selection& selection,
                          const PagedTarget& target) const {
  write_paged({.from = token_lists(call, selection),
               .block_table = target.block_table,
               .block_tokens = target.block_tokens,
               .indptr = target.indptr,
               .indices = target.indices},
              rows_of(call));
}

void CudaStages::add_counts(CacheStats& stats) const {
  wait_for_all();
  Counts counts{};
  copy_async(&counts, counts_.data(), sizeof counts, side_.get());
  wait_for(side_.get());
  stats.step = counts.step;
  stats.total = counts.total;
  stats.clusters = counts.clusters;
}

}  // namespace clusterkv::CLUSTERKV_DEVICE

namespace clusterkv {

const BackendInfo& cuda_backend() {
  namespace ops = CLUSTERKV_DEVICE;
  static const BackendInfo kInfo{.missing = ops::find_device_fault(),
                                 .residency = Residency::kHost,
                                 .find_fault = ops::find_fault,
                                 .find_needs = ops::CudaStages::needs,
                                 .make = ops::make,
                                 .memory = ops::device_memory};
  return kInfo;
}

}  // namespace clusterkv
