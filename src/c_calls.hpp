// SPDX-License-Identifier: Apache-2.0
//
// What the C calls of caches and of selectors have in common, by the handle's class.
#pragma once

#include <memory>
#include <span>
#include <utility>

#include "src/c_convert.hpp"

namespace clusterkv::c {

template <class Cache>
void supports(const ckv_config* config, std::int32_t backend, const char** reason) {
  not_null(reason, "reason");
  const Support support = Cache::supports(to_config(config), to_backend(backend));
  *reason = support.ok ? nullptr : support.reason;
}

template <class Cache>
void memory_needs(const ckv_config* config, std::int32_t backend, const ckv_plan_limits* limits,
                  ckv_memory_needs* needs) {
  sized(needs, "needs");
  fill_needs(Cache::memory_needs(to_config(config), to_backend(backend), to_limits(limits)), needs);
}

/// \param made  set to a new ckv_cache or ckv_selector
template <class Object>
void create(const ckv_config* config, const ckv_resources* resources, Object** made) {
  not_null(made, "handle");
  const CacheConfig cpp_config = to_config(config);
  Resources on;
  std::unique_ptr<MemoryResource> memory;
  if (resources != nullptr) {
    on.backend = to_backend(known(resources, "resources").backend);
    on.executor = to_executor(resources->executor);
    if (resources->memory != nullptr) {
      const ckv_memory_callbacks& callbacks = known(resources->memory, "resources.memory");
      not_null(callbacks.allocate, "resources.memory.allocate");
      not_null(callbacks.deallocate, "resources.memory.deallocate");
      memory = std::make_unique<CallbackMemory>(callbacks);
      on.memory = memory.get();
    }
  }
  using Cache = decltype(Object::handle.cache);
  *made = new Object{{std::move(memory), on.backend, Cache(cpp_config, on)}};
}

template <class Object>
void destroy(Object* object) {
  if (object == nullptr) return;
  const int plans = object->handle.plans;
  if (plans > 0) fail<StepError>("handle: has {} plans, expected them destroyed before", plans);
  delete object;
}

// ---------------------------------------------------------------------------------- sequences

template <class H>
void save(const H& on, std::int64_t sequence, const ckv_writer* writer, const ckv_stream* stream) {
  const ckv_writer& w = known(writer, "writer");
  not_null(w.write, "writer.write");
  const auto write = [&w](std::span<const std::byte> bytes) {
    const int failure = w.write(w.context, bytes.data(), bytes.size());
    if (failure != 0) fail<CallbackError>("writer.write: {}, expected 0", failure);
  };
  on.cache.save(SequenceId{sequence}, write, to_stream(stream, on.backend));
}

template <class H>
void load(H& on, const ckv_reader* reader, const ckv_stream* stream, std::int64_t* sequence) {
  not_null(sequence, "sequence");
  const ckv_reader& r = known(reader, "reader");
  not_null(r.read, "reader.read");
  const auto read = [&r](std::span<std::byte> bytes) {
    const std::int64_t count = r.read(r.context, bytes.data(), bytes.size());
    if (count < 0) fail<CallbackError>("reader.read: {}, expected bytes read", count);
    return static_cast<std::size_t>(count);
  };
  *sequence = static_cast<std::int64_t>(on.cache.load(read, to_stream(stream, on.backend)));
}

template <class H>
void fork(H& on, std::int64_t parent, std::int64_t num_tokens, const ckv_stream* stream,
          std::int64_t* sequence) {
  not_null(sequence, "sequence");
  *sequence = static_cast<std::int64_t>(
      on.cache.fork(SequenceId{parent}, num_tokens, to_stream(stream, on.backend)));
}

template <class H>
void add_sequence(H& on, std::int64_t* sequence) {
  not_null(sequence, "sequence");
  *sequence = static_cast<std::int64_t>(on.cache.add_sequence());
}

// --------------------------------------------------------------------------------------- steps

template <class H>
void plan(H& on, const ckv_plan_args* args, const ckv_stream* stream, ckv_plan** made) {
  not_null(made, "plan");
  const ckv_plan_args& a = known(args, "args");
  const PlanLimits limits = to_limits(a.limits);
  const Workspace workspace = to_workspace(a.workspace);
  auto plan = std::make_unique<ckv_plan>();
  to_rows(a.rows, a.num_rows, limits.max_rows, plan->rows);
  plan->max_rows = limits.max_rows;
  plan->plans = &on.plans;
  // A wrong limit is refused by the cache.
  if (limits.max_rows <= 1 << 20) plan->rows.reserve(static_cast<std::size_t>(limits.max_rows));
  plan->plan = on.cache.plan(plan->rows, limits, workspace, to_stream(stream, on.backend));
  ++on.plans;
  *made = plan.release();
}

template <class H>
void update(H& on, ckv_plan* plan, const ckv_step_row* rows, std::size_t num_rows,
            const ckv_stream* stream) {
  ckv_plan& p = not_null(plan, "plan");
  to_rows(rows, num_rows, p.max_rows, p.rows);
  on.cache.update(p.plan, p.rows, to_stream(stream, on.backend));
}

/// A ckv_layer_call, checked.
struct Call {
  int layer;
  ckv_plan& plan;
  Stream stream;
};

template <class H>
Call to_call(const H& on, const ckv_layer_call* call) {
  const ckv_layer_call& c = known(call, "call");
  return {c.layer, not_null(c.plan, "call.plan"), to_stream(c.stream, on.backend)};
}

template <class H>
void select(H& on, const ckv_layer_call* call, const ckv_tensor* query, ckv_selection* selection) {
  ckv_selection& to = sized(selection, "selection");
  const Call c = to_call(on, call);
  fill_selection(on.cache.select(c.layer, c.plan.plan, to_view(query, "query"), c.stream), c.plan,
                 to);
}

template <class H>
void token_ids(const H& on, const ckv_layer_call* call, const ckv_selection* selection,
               const ckv_tensor* ids, const ckv_tensor* counts) {
  const Call c = to_call(on, call);
  on.cache.token_ids(c.layer, c.plan.plan, to_selection(selection), to_view(ids, "ids"),
                     to_view(counts, "counts"), c.stream);
}

}  // namespace clusterkv::c
