// SPDX-License-Identifier: Apache-2.0
//
// The C calls that are of no cache: presets, executors, plans, attention.
#include "clusterkv/c_api.h"

#include "clusterkv/attention.hpp"
#include "clusterkv/version.hpp"
#include "src/c_convert.hpp"

using namespace clusterkv;

const char* ckv_version(void) {
  return version();
}

ckv_status ckv_config_standard(ckv_config* config, ckv_error* error) {
  return c::guarded(error,
                    [&] { c::fill_config(CacheConfig::standard({}), c::sized(config, "config")); });
}

ckv_status ckv_config_paper(ckv_config* config, ckv_error* error) {
  return c::guarded(error,
                    [&] { c::fill_config(CacheConfig::paper({}), c::sized(config, "config")); });
}

// ----------------------------------------------------------------------------------- executors

ckv_status ckv_executor_create_pool(int32_t num_threads, ckv_executor** executor,
                                    ckv_error* error) {
  return c::guarded(error, [&] {
    c::not_null(executor, "executor");
    *executor = new ckv_executor{make_thread_pool(num_threads), nullptr};
  });
}

ckv_status ckv_executor_create_lent(int32_t num_threads, ckv_executor** executor,
                                    ckv_error* error) {
  return c::guarded(error, [&] {
    c::not_null(executor, "executor");
    auto lent = std::make_unique<LentThreads>(num_threads);
    LentThreads* its = lent.get();
    *executor = new ckv_executor{std::move(lent), its};
  });
}

ckv_status ckv_executor_create_callbacks(const ckv_executor_callbacks* callbacks,
                                         ckv_executor** executor, ckv_error* error) {
  return c::guarded(error, [&] {
    c::not_null(executor, "executor");
    const ckv_executor_callbacks& from = c::known(callbacks, "callbacks");
    c::not_null(from.run, "callbacks.run");
    if (from.concurrency < 1) {
      c::fail<ConfigError>("callbacks.concurrency: {}, expected >= 1", from.concurrency);
    }
    *executor = new ckv_executor{std::make_unique<c::CallbackExecutor>(from), nullptr};
  });
}

namespace {

LentThreads& lent_of(ckv_executor* executor) {
  if (c::not_null(executor, "executor").lent == nullptr) {
    c::fail<c::ArgumentError>("executor: of another kind, expected ckv_executor_create_lent()'s");
  }
  return *executor->lent;
}

}  // namespace

ckv_status ckv_executor_serve(ckv_executor* executor, int32_t operation, ckv_error* error) {
  return c::guarded(error, [&] { lent_of(executor).serve(operation); });
}

ckv_status ckv_executor_release(ckv_executor* executor, ckv_error* error) {
  return c::guarded(error, [&] { lent_of(executor).release(); });
}

ckv_status ckv_executor_destroy(ckv_executor* executor, ckv_error* error) {
  return c::guarded(error, [&] { delete executor; });
}

// --------------------------------------------------------------------------------------- plans

ckv_status ckv_plan_num_rows(const ckv_plan* plan, int32_t* count, ckv_error* error) {
  return c::guarded(
      error, [&] { c::not_null(count, "count") = c::not_null(plan, "plan").plan.num_rows(); });
}

ckv_status ckv_plan_num_new_tokens(const ckv_plan* plan, int32_t* count, ckv_error* error) {
  return c::guarded(error, [&] {
    c::not_null(count, "count") = c::not_null(plan, "plan").plan.num_new_tokens();
  });
}

ckv_status ckv_plan_num_query_tokens(const ckv_plan* plan, int32_t* count, ckv_error* error) {
  return c::guarded(error, [&] {
    c::not_null(count, "count") = c::not_null(plan, "plan").plan.num_query_tokens();
  });
}

ckv_status ckv_plan_destroy(ckv_plan* plan, ckv_error* error) {
  return c::guarded(error, [&] {
    if (plan == nullptr) return;
    std::atomic<int>* plans = plan->plans;
    delete plan;
    --*plans;
  });
}

// ----------------------------------------------------------------------------------- attention

namespace {

DecodeArgs to_decode_args(const ckv_decode_args* args) {
  const ckv_decode_args& a = c::known(args, "args");
  return {c::to_view(a.query, "query"),
          c::to_view(a.key, "key"),
          c::to_view(a.value, "value"),
          c::to_optional_view(a.lengths, "lengths"),
          a.softmax_scale,
          a.logit_softcap};
}

}  // namespace

ckv_status ckv_dense_decode(const ckv_decode_args* args, const ckv_attention_out* out,
                            const ckv_stream* stream, ckv_error* error) {
  return c::guarded(
      error, [&] { dense_decode(to_decode_args(args), c::to_out(out), c::to_stream(stream)); });
}

ckv_status ckv_sparse_decode(const ckv_decode_args* args, const ckv_tensor* token_ids,
                             const ckv_tensor* counts, const ckv_attention_out* out,
                             const ckv_stream* stream, ckv_error* error) {
  return c::guarded(error, [&] {
    sparse_decode(to_decode_args(args), c::to_view(token_ids, "token_ids"),
                  c::to_view(counts, "counts"), c::to_out(out), c::to_stream(stream));
  });
}

ckv_status ckv_merge_states(const ckv_attention_out* parts, size_t num_parts,
                            const ckv_attention_out* total, const ckv_stream* stream,
                            ckv_error* error) {
  return c::guarded(error, [&] {
    std::vector<AttentionOut> views;
    if (num_parts > 0) c::not_null(parts, "parts");
    for (size_t i = 0; i < num_parts; ++i) views.push_back(c::to_out(parts + i));
    merge_states(views, c::to_out(total), c::to_stream(stream));
  });
}
