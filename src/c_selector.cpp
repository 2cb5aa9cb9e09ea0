// SPDX-License-Identifier: Apache-2.0
//
// The C calls of ClusterSelector.
#include "src/c_calls.hpp"

using namespace clusterkv;

namespace {

auto& handle_of(ckv_selector* selector) {
  return c::not_null(selector, "selector").handle;
}
const auto& handle_of(const ckv_selector* selector) {
  return c::not_null(selector, "selector").handle;
}

}  // namespace

ckv_status ckv_selector_supports(const ckv_config* config, int32_t backend, const char** reason,
                                 ckv_error* error) {
  return c::guarded(error, [&] { c::supports<ClusterSelector>(config, backend, reason); });
}

ckv_status ckv_selector_memory_needs(const ckv_config* config, int32_t backend,
                                     const ckv_plan_limits* limits, ckv_memory_needs* needs,
                                     ckv_error* error) {
  return c::guarded(error,
                    [&] { c::memory_needs<ClusterSelector>(config, backend, limits, needs); });
}

ckv_status ckv_selector_create(const ckv_config* config, const ckv_resources* resources,
                               ckv_selector** selector, ckv_error* error) {
  return c::guarded(error, [&] { c::create(config, resources, selector); });
}

ckv_status ckv_selector_destroy(ckv_selector* selector, ckv_error* error) {
  return c::guarded(error, [&] { c::destroy(selector); });
}

ckv_status ckv_selector_config(const ckv_selector* selector, ckv_config* config, ckv_error* error) {
  return c::guarded(error, [&] {
    c::fill_config(handle_of(selector).cache.config(), c::sized(config, "config"));
  });
}

// ---------------------------------------------------------------------------------- sequences

ckv_status ckv_selector_add_sequence(ckv_selector* selector, int64_t* sequence, ckv_error* error) {
  return c::guarded(error, [&] { c::add_sequence(handle_of(selector), sequence); });
}

ckv_status ckv_selector_fork(ckv_selector* selector, int64_t parent, int64_t num_tokens,
                             const ckv_stream* stream, int64_t* sequence, ckv_error* error) {
  return c::guarded(error,
                    [&] { c::fork(handle_of(selector), parent, num_tokens, stream, sequence); });
}

ckv_status ckv_selector_truncate(ckv_selector* selector, int64_t sequence, int64_t num_tokens,
                                 const ckv_stream* stream, ckv_error* error) {
  return c::guarded(error, [&] {
    auto& on = handle_of(selector);
    on.cache.truncate(SequenceId{sequence}, num_tokens, c::to_stream(stream, on.backend));
  });
}

ckv_status ckv_selector_remove(ckv_selector* selector, int64_t sequence, const ckv_stream* stream,
                               ckv_error* error) {
  return c::guarded(error, [&] {
    auto& on = handle_of(selector);
    on.cache.remove(SequenceId{sequence}, c::to_stream(stream, on.backend));
  });
}

ckv_status ckv_selector_save(const ckv_selector* selector, int64_t sequence,
                             const ckv_writer* writer, const ckv_stream* stream, ckv_error* error) {
  return c::guarded(error, [&] { c::save(handle_of(selector), sequence, writer, stream); });
}

ckv_status ckv_selector_load(ckv_selector* selector, const ckv_reader* reader,
                             const ckv_stream* stream, int64_t* sequence, ckv_error* error) {
  return c::guarded(error, [&] { c::load(handle_of(selector), reader, stream, sequence); });
}

ckv_status ckv_selector_length(const ckv_selector* selector, int64_t sequence, int64_t* length,
                               ckv_error* error) {
  return c::guarded(error, [&] {
    c::not_null(length, "length") = handle_of(selector).cache.length(SequenceId{sequence});
  });
}

// --------------------------------------------------------------------------------------- steps

ckv_status ckv_selector_plan(ckv_selector* selector, const ckv_plan_args* args,
                             const ckv_stream* stream, ckv_plan** plan, ckv_error* error) {
  return c::guarded(error, [&] { c::plan(handle_of(selector), args, stream, plan); });
}

ckv_status ckv_selector_update(ckv_selector* selector, ckv_plan* plan, const ckv_step_row* rows,
                               size_t num_rows, const ckv_stream* stream, ckv_error* error) {
  return c::guarded(error, [&] { c::update(handle_of(selector), plan, rows, num_rows, stream); });
}

ckv_status ckv_selector_append(ckv_selector* selector, const ckv_layer_call* call,
                               const ckv_tensor* key, const ckv_tensor* value, ckv_error* error) {
  return c::guarded(error, [&] {
    auto& on = handle_of(selector);
    const c::Call at = c::to_call(on, call);
    on.cache.append(at.layer, at.plan.plan, c::to_view(key, "key"),
                    c::to_optional_view(value, "value"), at.stream);
  });
}

ckv_status ckv_selector_select(ckv_selector* selector, const ckv_layer_call* call,
                               const ckv_tensor* query, ckv_selection* selection,
                               ckv_error* error) {
  return c::guarded(error, [&] { c::select(handle_of(selector), call, query, selection); });
}

ckv_status ckv_selector_token_ids(const ckv_selector* selector, const ckv_layer_call* call,
                                  const ckv_selection* selection, const ckv_tensor* ids,
                                  const ckv_tensor* counts, ckv_error* error) {
  return c::guarded(error,
                    [&] { c::token_ids(handle_of(selector), call, selection, ids, counts); });
}

ckv_status ckv_selector_attend_tail(ckv_selector* selector, const ckv_layer_call* call,
                                    const ckv_selection* selection, const ckv_attend_args* args,
                                    ckv_error* error) {
  return c::guarded(error, [&] {
    auto& on = handle_of(selector);
    const c::Call at = c::to_call(on, call);
    const AttendArgs to = c::to_attend_args(args);
    if (!to.sink_logits.empty()) {
      c::fail<ShapeError>("sink_logits: given, expected NULL: they are for the engine's own part");
    }
    on.cache.attend_tail(at.layer, at.plan.plan, c::to_selection(selection), to.query, to.out,
                         at.stream);
  });
}

ckv_status ckv_selector_to_paged(const ckv_selector* selector, const ckv_layer_call* call,
                                 const ckv_selection* selection, const ckv_paged_target* target,
                                 ckv_error* error) {
  return c::guarded(error, [&] {
    const auto& on = handle_of(selector);
    const c::Call at = c::to_call(on, call);
    const ckv_paged_target& t = c::known(target, "target");
    on.cache.to_paged(at.layer, at.plan.plan, c::to_selection(selection),
                      c::to_view(t.block_table, "block_table"), t.block_tokens,
                      c::to_view(t.indptr, "indptr"), c::to_view(t.indices, "indices"), at.stream);
  });
}

ckv_status ckv_selector_stats(const ckv_selector* selector, ckv_stats* stats, ckv_error* error) {
  return c::guarded(error, [&] { c::fill_stats(handle_of(selector).cache.stats(), stats); });
}
