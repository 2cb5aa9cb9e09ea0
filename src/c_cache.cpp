// SPDX-License-Identifier: Apache-2.0
//
// The C calls of ClusterKVCache.
#include "src/c_calls.hpp"

using namespace clusterkv;

namespace {

auto& handle_of(ckv_cache* cache) {
  return c::not_null(cache, "cache").handle;
}
const auto& handle_of(const ckv_cache* cache) {
  return c::not_null(cache, "cache").handle;
}

}  // namespace

ckv_status ckv_cache_supports(const ckv_config* config, int32_t backend, const char** reason,
                              ckv_error* error) {
  return c::guarded(error, [&] { c::supports<ClusterKVCache>(config, backend, reason); });
}

ckv_status ckv_cache_memory_needs(const ckv_config* config, int32_t backend,
                                  const ckv_plan_limits* limits, ckv_memory_needs* needs,
                                  ckv_error* error) {
  return c::guarded(error,
                    [&] { c::memory_needs<ClusterKVCache>(config, backend, limits, needs); });
}

ckv_status ckv_cache_create(const ckv_config* config, const ckv_resources* resources,
                            ckv_cache** cache, ckv_error* error) {
  return c::guarded(error, [&] { c::create(config, resources, cache); });
}

ckv_status ckv_cache_destroy(ckv_cache* cache, ckv_error* error) {
  return c::guarded(error, [&] { c::destroy(cache); });
}

ckv_status ckv_cache_config(const ckv_cache* cache, ckv_config* config, ckv_error* error) {
  return c::guarded(
      error, [&] { c::fill_config(handle_of(cache).cache.config(), c::sized(config, "config")); });
}

// ---------------------------------------------------------------------------------- sequences

ckv_status ckv_cache_add_sequence(ckv_cache* cache, int64_t* sequence, ckv_error* error) {
  return c::guarded(error, [&] { c::add_sequence(handle_of(cache), sequence); });
}

ckv_status ckv_cache_fork(ckv_cache* cache, int64_t parent, int64_t num_tokens,
                          const ckv_stream* stream, int64_t* sequence, ckv_error* error) {
  return c::guarded(error,
                    [&] { c::fork(handle_of(cache), parent, num_tokens, stream, sequence); });
}

ckv_status ckv_cache_truncate(ckv_cache* cache, int64_t sequence, int64_t num_tokens,
                              const ckv_stream* stream, ckv_error* error) {
  return c::guarded(error, [&] {
    auto& on = handle_of(cache);
    on.cache.truncate(SequenceId{sequence}, num_tokens, c::to_stream(stream, on.backend));
  });
}

ckv_status ckv_cache_remove(ckv_cache* cache, int64_t sequence, const ckv_stream* stream,
                            ckv_error* error) {
  return c::guarded(error, [&] {
    auto& on = handle_of(cache);
    on.cache.remove(SequenceId{sequence}, c::to_stream(stream, on.backend));
  });
}

ckv_status ckv_cache_save(const ckv_cache* cache, int64_t sequence, const ckv_writer* writer,
                          const ckv_stream* stream, ckv_error* error) {
  return c::guarded(error, [&] { c::save(handle_of(cache), sequence, writer, stream); });
}

ckv_status ckv_cache_load(ckv_cache* cache, const ckv_reader* reader, const ckv_stream* stream,
                          int64_t* sequence, ckv_error* error) {
  return c::guarded(error, [&] { c::load(handle_of(cache), reader, stream, sequence); });
}

ckv_status ckv_cache_length(const ckv_cache* cache, int64_t sequence, int64_t* length,
                            ckv_error* error) {
  return c::guarded(error, [&] {
    c::not_null(length, "length") = handle_of(cache).cache.length(SequenceId{sequence});
  });
}

// --------------------------------------------------------------------------------------- steps

ckv_status ckv_cache_plan(ckv_cache* cache, const ckv_plan_args* args, const ckv_stream* stream,
                          ckv_plan** plan, ckv_error* error) {
  return c::guarded(error, [&] { c::plan(handle_of(cache), args, stream, plan); });
}

ckv_status ckv_cache_update(ckv_cache* cache, ckv_plan* plan, const ckv_step_row* rows,
                            size_t num_rows, const ckv_stream* stream, ckv_error* error) {
  return c::guarded(error, [&] { c::update(handle_of(cache), plan, rows, num_rows, stream); });
}

ckv_status ckv_cache_append(ckv_cache* cache, const ckv_layer_call* call, const ckv_tensor* key,
                            const ckv_tensor* value, ckv_error* error) {
  return c::guarded(error, [&] {
    auto& on = handle_of(cache);
    const c::Call at = c::to_call(on, call);
    on.cache.append(at.layer, at.plan.plan, c::to_view(key, "key"), c::to_view(value, "value"),
                    at.stream);
  });
}

ckv_status ckv_cache_prefetch(ckv_cache* cache, const ckv_layer_call* call,
                              const ckv_tensor* query_hint, ckv_error* error) {
  return c::guarded(error, [&] {
    auto& on = handle_of(cache);
    const c::Call at = c::to_call(on, call);
    on.cache.prefetch(at.layer, at.plan.plan, c::to_view(query_hint, "query_hint"), at.stream);
  });
}

ckv_status ckv_cache_select(ckv_cache* cache, const ckv_layer_call* call, const ckv_tensor* query,
                            ckv_selection* selection, ckv_error* error) {
  return c::guarded(error, [&] { c::select(handle_of(cache), call, query, selection); });
}

ckv_status ckv_cache_token_ids(const ckv_cache* cache, const ckv_layer_call* call,
                               const ckv_selection* selection, const ckv_tensor* ids,
                               const ckv_tensor* counts, ckv_error* error) {
  return c::guarded(error, [&] { c::token_ids(handle_of(cache), call, selection, ids, counts); });
}

ckv_status ckv_cache_attend(ckv_cache* cache, const ckv_layer_call* call,
                            const ckv_attend_args* args, ckv_error* error) {
  return c::guarded(error, [&] {
    auto& on = handle_of(cache);
    const c::Call at = c::to_call(on, call);
    on.cache.attend(at.layer, at.plan.plan, c::to_attend_args(args), at.stream);
  });
}

ckv_status ckv_cache_attend_selected(ckv_cache* cache, const ckv_layer_call* call,
                                     const ckv_selection* selection, const ckv_attend_args* args,
                                     ckv_error* error) {
  return c::guarded(error, [&] {
    auto& on = handle_of(cache);
    const c::Call at = c::to_call(on, call);
    on.cache.attend_selected(at.layer, at.plan.plan, c::to_selection(selection),
                             c::to_attend_args(args), at.stream);
  });
}

ckv_status ckv_cache_read_rows(const ckv_cache* cache, const ckv_row_range* range,
                               const ckv_tensor* key, const ckv_tensor* value,
                               const ckv_stream* stream, ckv_error* error) {
  return c::guarded(error, [&] {
    const auto& on = handle_of(cache);
    const ckv_row_range& r = c::known(range, "range");
    on.cache.read_rows(r.layer, SequenceId{r.sequence}, r.first, r.last, c::to_view(key, "key"),
                       c::to_view(value, "value"), c::to_stream(stream, on.backend));
  });
}

ckv_status ckv_cache_stats(const ckv_cache* cache, ckv_stats* stats, ckv_error* error) {
  return c::guarded(error, [&] { c::fill_stats(handle_of(cache).cache.stats(), stats); });
}
