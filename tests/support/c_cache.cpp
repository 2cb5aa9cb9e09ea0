// SPDX-License-Identifier: Apache-2.0
#include "tests/support/c_cache.hpp"

namespace clusterkv::testing {

CCache::CCache(const CacheConfig& config, const Resources& resources)
    : config_(config), executor_(resources.executor) {
  const ckv_config from = c_config(config);
  ckv_memory_callbacks memory{};
  auto on = c_struct<ckv_resources>();
  on.backend = static_cast<int>(resources.backend);
  on.executor = executor_.handle;
  if (resources.memory != nullptr) {
    memory = c_memory(*resources.memory);
    on.memory = &memory;
  }
  c_call([&](ckv_error* e) { return ckv_cache_create(&from, &on, &cache_, e); });
}

CCache::~CCache() {
  ckv_cache_destroy(cache_, nullptr);
}

MemoryNeeds CCache::memory_needs(const CacheConfig& config, Backend backend,
                                 const PlanLimits& limits) {
  const ckv_config from = c_config(config);
  const ckv_plan_limits bounds = c_limits(limits);
  auto needs = c_struct<ckv_memory_needs>();
  c_call([&](ckv_error* e) {
    return ckv_cache_memory_needs(&from, static_cast<int>(backend), &bounds, &needs, e);
  });
  return {needs.device_bytes, needs.pinned_bytes,    needs.host_bytes,
          needs.file_bytes,   needs.workspace_bytes, needs.workspace_pinned_bytes};
}

SequenceId CCache::add_sequence() {
  std::int64_t id = -7;
  c_call([&](ckv_error* e) { return ckv_cache_add_sequence(cache_, &id, e); });
  return SequenceId{id};
}

SequenceId CCache::fork(SequenceId parent, std::int64_t num_tokens, Stream stream) {
  std::int64_t id = -7;
  c_call([&](ckv_error* e) {
    return ckv_cache_fork(cache_, static_cast<std::int64_t>(parent), num_tokens, CStream(stream),
                          &id, e);
  });
  return SequenceId{id};
}

void CCache::truncate(SequenceId id, std::int64_t num_tokens, Stream stream) {
  c_call([&](ckv_error* e) {
    return ckv_cache_truncate(cache_, static_cast<std::int64_t>(id), num_tokens, CStream(stream),
                              e);
  });
}

void CCache::remove(SequenceId id, Stream stream) {
  c_call([&](ckv_error* e) {
    return ckv_cache_remove(cache_, static_cast<std::int64_t>(id), CStream(stream), e);
  });
}

void CCache::save(SequenceId id, const WriteFn& write, Stream stream) const {
  auto writer = c_struct<ckv_writer>();
  writer.context = const_cast<WriteFn*>(&write);
  writer.write = [](void* context, const void* bytes, size_t size) {
    (*static_cast<WriteFn*>(context))({static_cast<const std::byte*>(bytes), size});
    return 0;
  };
  c_call([&](ckv_error* e) {
    return ckv_cache_save(cache_, static_cast<std::int64_t>(id), &writer, CStream(stream), e);
  });
}

SequenceId CCache::load(const ReadFn& read, Stream stream) {
  auto reader = c_struct<ckv_reader>();
  reader.context = const_cast<ReadFn*>(&read);
  reader.read = [](void* context, void* bytes, size_t size) {
    return static_cast<std::int64_t>(
        (*static_cast<ReadFn*>(context))({static_cast<std::byte*>(bytes), size}));
  };
  std::int64_t id = -7;
  c_call([&](ckv_error* e) { return ckv_cache_load(cache_, &reader, CStream(stream), &id, e); });
  return SequenceId{id};
}

std::int64_t CCache::length(SequenceId id) const {
  std::int64_t length = -7;
  c_call([&](ckv_error* e) {
    return ckv_cache_length(cache_, static_cast<std::int64_t>(id), &length, e);
  });
  return length;
}

CPlan CCache::plan(std::span<const StepRow> rows, const PlanLimits& limits, Workspace workspace,
                   Stream stream) {
  const std::vector<ckv_step_row> from = c_rows(rows);
  const ckv_plan_limits bounds = c_limits(limits);
  const ckv_workspace memory{sizeof memory, workspace.data, workspace.bytes, workspace.pinned,
                             workspace.pinned_bytes};
  auto args = c_struct<ckv_plan_args>();
  args.rows = from.data();
  args.num_rows = from.size();
  args.limits = &bounds;
  args.workspace = &memory;
  ckv_plan* plan = nullptr;
  c_call([&](ckv_error* e) { return ckv_cache_plan(cache_, &args, CStream(stream), &plan, e); });
  return CPlan(plan);
}

void CCache::update(CPlan& plan, std::span<const StepRow> rows, Stream stream) {
  const std::vector<ckv_step_row> from = c_rows(rows);
  c_call([&](ckv_error* e) {
    return ckv_cache_update(cache_, plan.get(), from.data(), from.size(), CStream(stream), e);
  });
}

void CCache::append(int layer, const CPlan& plan, const TensorView& key, const TensorView& value,
                    Stream stream) {
  c_call([&](ckv_error* e) {
    return ckv_cache_append(cache_, CCall(layer, plan, stream), CTensor(key), CTensor(value), e);
  });
}

void CCache::attend(int layer, const CPlan& plan, const AttendArgs& args, Stream stream) {
  const CAttendArgs from(args);
  c_call([&](ckv_error* e) {
    return ckv_cache_attend(cache_, CCall(layer, plan, stream), &from.args, e);
  });
}

void CCache::prefetch(int layer, const CPlan& plan, const TensorView& query_hint, Stream stream) {
  c_call([&](ckv_error* e) {
    return ckv_cache_prefetch(cache_, CCall(layer, plan, stream), CTensor(query_hint), e);
  });
}

Selection CCache::select(int layer, const CPlan& plan, const TensorView& query, Stream stream) {
  auto selection = c_struct<ckv_selection>();
  c_call([&](ckv_error* e) {
    return ckv_cache_select(cache_, CCall(layer, plan, stream), CTensor(query), &selection, e);
  });
  return {view_of(selection.cluster_ids), view_of(selection.row_counts)};
}

void CCache::attend_selected(int layer, const CPlan& plan, const Selection& selection,
                             const AttendArgs& args, Stream stream) {
  const CAttendArgs from(args);
  const CTensor ids(selection.cluster_ids), counts(selection.row_counts);
  const ckv_selection chosen = c_selection(ids, counts);
  c_call([&](ckv_error* e) {
    return ckv_cache_attend_selected(cache_, CCall(layer, plan, stream), &chosen, &from.args, e);
  });
}

void CCache::token_ids(int layer, const CPlan& plan, const Selection& selection,
                       const TensorView& ids, const TensorView& counts, Stream stream) const {
  const CTensor clusters(selection.cluster_ids), rows(selection.row_counts);
  const ckv_selection chosen = c_selection(clusters, rows);
  c_call([&](ckv_error* e) {
    return ckv_cache_token_ids(cache_, CCall(layer, plan, stream), &chosen, CTensor(ids),
                               CTensor(counts), e);
  });
}

void CCache::read_rows(int layer, SequenceId id, std::int64_t first, std::int64_t last,
                       const TensorView& key, const TensorView& value, Stream stream) const {
  const ckv_row_range range{sizeof range, static_cast<std::int64_t>(id), first, last, layer, 0};
  c_call([&](ckv_error* e) {
    return ckv_cache_read_rows(cache_, &range, CTensor(key), CTensor(value), CStream(stream), e);
  });
}

CacheStats CCache::stats() const {
  auto stats = c_struct<ckv_stats>();
  auto total = c_struct<ckv_step_stats>(), step = c_struct<ckv_step_stats>();
  stats.total = &total;
  stats.step = &step;
  c_call([&](ckv_error* e) { return ckv_cache_stats(cache_, &stats, e); });
  return stats_of(stats, total, step);
}

}  // namespace clusterkv::testing
