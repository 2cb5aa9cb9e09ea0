// SPDX-License-Identifier: Apache-2.0
//
// Structs of the C API, filled field by field: not by the library's own conversion.
#include <algorithm>
#include <functional>

#include "tests/support/c_cache.hpp"

namespace clusterkv::testing {

void throw_unless_ok(ckv_status status, const ckv_error& error) {
  const char* text = error.message;
  switch (status) {
    case CKV_OK: return;
    case CKV_CONFIG_ERROR: throw ConfigError(text);
    case CKV_SHAPE_ERROR: throw ShapeError(text);
    case CKV_DTYPE_ERROR: throw DTypeError(text);
    case CKV_VALUE_ERROR: throw ValueError(text);
    case CKV_CAPACITY_ERROR: throw CapacityError(text);
    case CKV_UNKNOWN_SEQUENCE: throw UnknownSequence(text);
    case CKV_STEP_ERROR: throw StepError(text);
    case CKV_BACKEND_UNAVAILABLE: throw BackendUnavailable(text);
    case CKV_CUDA_ERROR: throw CudaError(text);
    case CKV_OUT_OF_MEMORY: throw OutOfMemory(text);
    case CKV_FORMAT_ERROR: throw FormatError(text);
    case CKV_FILE_ERROR: throw FileError(text);
    default: throw std::runtime_error(ckv_status_name(status) + (": " + std::string(text)));
  }
}

ckv_config c_config(const CacheConfig& from) {
  auto to = c_struct<ckv_config>();
  const ModelShape& m = from.model;
  to.num_layers = m.num_layers;
  to.num_q_heads = m.num_q_heads;
  to.num_kv_heads = m.num_kv_heads;
  to.head_dim = m.head_dim;
  to.value_dim = m.value_dim;
  to.kv_dtype = static_cast<int>(m.kv_dtype);
  to.softmax_scale = m.softmax_scale;
  to.logit_softcap = m.logit_softcap;
  to.layers = m.layers.empty() ? nullptr : m.layers.data();
  const ClusterConfig& c = from.cluster;
  to.tokens_per_cluster = c.tokens_per_cluster;
  to.segment_tokens = c.segment_tokens;
  to.window_tokens = c.window_tokens;
  to.min_window_clusters = c.min_window_clusters;
  to.kmeans_iterations = c.kmeans_iterations;
  to.sink_tokens = c.sink_tokens;
  to.seed = c.seed;
  to.metric = static_cast<int>(c.metric);
  to.index_dtype = static_cast<int>(c.index_dtype);
  const SelectConfig& s = from.select;
  to.budget_tokens = s.budget_tokens;
  to.grouping = static_cast<int>(s.grouping);
  to.tail = static_cast<int>(s.tail);
  to.tail_share = s.tail_share;
  to.dense_layers = s.dense_layers;
  to.dense_threshold = s.dense_threshold;
  const StoreConfig& r = from.store;
  to.residency = static_cast<int>(r.residency);
  to.device_bytes = r.device_bytes;
  to.host_bytes = r.host_bytes;
  to.cold_path = r.cold_path.empty() ? nullptr : r.cold_path.c_str();
  to.live_tokens = r.live_tokens;
  to.retention = static_cast<int>(r.retention);
  to.retain_steps = r.retain_steps;
  to.misses = static_cast<int>(r.misses);
  to.transfer_tokens = r.transfer_tokens;
  to.max_sequences = from.max_sequences;
  to.max_tokens = from.max_tokens;
  to.check_finite = from.check_finite ? 1 : 0;
  return to;
}

ckv_plan_limits c_limits(const PlanLimits& limits) {
  auto to = c_struct<ckv_plan_limits>();
  to.max_rows = limits.max_rows;
  to.max_new_tokens = limits.max_new_tokens;
  to.max_budget_tokens = limits.max_budget_tokens;
  to.max_query_tokens = limits.max_query_tokens;
  to.max_context_tokens = limits.max_context_tokens;
  to.prefetch = limits.prefetch ? 1 : 0;
  return to;
}

std::vector<ckv_step_row> c_rows(std::span<const StepRow> rows) {
  std::vector<ckv_step_row> to;
  for (const StepRow& row : rows) {
    to.push_back({sizeof(ckv_step_row), static_cast<std::int64_t>(row.id), row.num_new_tokens,
                  row.num_query_tokens, static_cast<int>(row.phase), row.budget_tokens});
  }
  return to;
}

CTensor::CTensor(const TensorView& view) : is_empty_(view.empty()) {
  std::copy_n(view.shape.begin(), TensorView::kMaxRank, shape);
  std::copy_n(view.stride.begin(), TensorView::kMaxRank, stride);
  const int kinds[] = {CKV_DEVICE_CPU, CKV_DEVICE_CUDA_HOST, CKV_DEVICE_CUDA};
  const ckv_data_type types[] = {{CKV_TYPE_FLOAT, 32, 1},
                                 {CKV_TYPE_FLOAT, 16, 1},
                                 {CKV_TYPE_BFLOAT, 16, 1},
                                 {CKV_TYPE_INT, 32, 1}};
  tensor = {view.data, {kinds[view.device.kind], view.device.index},
            view.rank, types[static_cast<int>(view.dtype)],
            shape,     stride,
            0};
}

CAttendArgs::CAttendArgs(const AttendArgs& from)
    : query(from.query), out(from.out.out), lse(from.out.lse), sink_logits(from.sink_logits) {
  result.out = out;
  result.lse = lse;
  args.query = query;
  args.out = &result;
  args.sink_logits = sink_logits;
}

CExecutor::CExecutor(Executor* executor) {
  if (executor == nullptr) return;
  auto callbacks = c_struct<ckv_executor_callbacks>();
  callbacks.context = executor;
  callbacks.concurrency = executor->concurrency();
  callbacks.run = [](void* context, int num_tasks, void (*task)(void*, int), void* arg) {
    static_cast<Executor*>(context)->run(num_tasks, task, arg);
    return 0;
  };
  c_call([&](ckv_error* e) { return ckv_executor_create_callbacks(&callbacks, &handle, e); });
}

ckv_memory_callbacks c_memory(MemoryResource& memory) {
  const auto device = [](std::int32_t type, std::int32_t index) {
    return Device{type == CKV_DEVICE_CPU ? Device::kHost : Device::kPinned, index};
  };
  static constexpr auto kDevice = device;
  auto callbacks = c_struct<ckv_memory_callbacks>();
  callbacks.context = &memory;
  callbacks.allocate = [](void* context, size_t bytes, size_t alignment, int32_t type,
                          int32_t index) {
    return static_cast<MemoryResource*>(context)->allocate(bytes, alignment, kDevice(type, index));
  };
  callbacks.deallocate = [](void* context, void* data, size_t bytes, size_t alignment, int32_t type,
                            int32_t index) {
    static_cast<MemoryResource*>(context)->deallocate(data, bytes, alignment, kDevice(type, index));
  };
  return callbacks;
}

CStream::CStream(const Stream& stream) : executor(stream.executor) {
  value.backend = static_cast<int>(stream.backend);
  value.handle = stream.handle;
  value.executor = executor.handle;
}

CCall::CCall(int layer, const CPlan& plan, const Stream& from) : stream(from) {
  value.plan = plan.get();
  value.stream = stream;
  value.layer = layer;
}

ckv_selection c_selection(const CTensor& ids, const CTensor& counts) {
  auto to = c_struct<ckv_selection>();
  to.cluster_ids = ids.tensor;
  to.row_counts = counts.tensor;
  return to;
}

TensorView view_of(const ckv_tensor& tensor) {
  TensorView view;
  view.data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  view.dtype = DType::kI32;
  view.rank = tensor.ndim;
  std::copy_n(tensor.shape, tensor.ndim, view.shape.begin());
  std::copy_n(tensor.strides, tensor.ndim, view.stride.begin());
  return view;
}

namespace {

StepStats stats_of(const ckv_step_stats& s) {
  return {s.selections,       s.dense_selections, s.attended_tokens,   s.sink_tokens,
          s.selected_tokens,  s.pending_tokens,   s.selected_clusters, s.scored_clusters,
          s.quad_hits,        s.quad_misses,      s.quads_in_place,    s.copied_bytes,
          s.row_bytes,        s.index_bytes,      s.value_mean_bytes,  s.estimated_clusters,
          s.estimated_tokens, s.estimates,        s.estimated_mass};
}

}  // namespace

CacheStats stats_of(const ckv_stats& s, const ckv_step_stats& total, const ckv_step_stats& step) {
  return {stats_of(total), stats_of(step),  s.steps,     s.appended_tokens,
          s.kmeans_runs,   s.kmeans_tokens, s.clusters,  s.live_sequences,
          s.live_tokens,   s.held_bytes,    s.host_bytes};
}

}  // namespace clusterkv::testing
