// SPDX-License-Identifier: Apache-2.0
#include "tools/clusterkv/replay.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "clusterkv/attention.hpp"
#include "clusterkv/error.hpp"
#include "clusterkv/kv_cache.hpp"
#include "tools/clusterkv/measure.hpp"

namespace clusterkv::tool {
namespace {

template <class T>
void apply(const std::optional<T>& option, T& field) {
  if (option) field = *option;
}

/// A cache, its plan and one sequence in it.
class Session {
 public:
  Session(const Trace& trace, const CacheConfig& config, const ReplayOptions& options,
          Executor& executor)
      : trace_(trace),
        layers_(chosen_layers(trace, options.layers), options.backend),
        stream_{options.backend, nullptr, nullptr},
        cache_(config, {options.backend, &executor, nullptr}),
        limits_{1, trace.query_start, 0},
        needs_(ClusterKVCache::memory_needs(config, options.backend, limits_)),
        memory_(needs_.workspace_bytes, SharedAllocator<std::byte>(options.backend)),
        pinned_(needs_.workspace_pinned_bytes, SharedAllocator<std::byte>(options.backend)),
        id_(cache_.add_sequence()) {}

  void prefill(int chunk, const Progress& progress) {
    const int step = chunk > 0 ? chunk : trace_.query_start;
    for (int first = 0; first < trace_.query_start; first += step) {
      const int last = std::min(trace_.query_start, first + step);
      begin({.id = id_,
             .num_new_tokens = last - first,
             .num_query_tokens = 0,
             .phase = last == trace_.query_start ? Phase::kPrefillLast : Phase::kPrefill});
      for (int i = 0; i < static_cast<int>(layers_.size()); ++i) append(i, first, last);
      progress(static_cast<double>(last) / trace_.query_start);
    }
  }

  void decode_token(int token) {
    begin({.id = id_});
    for (int i = 0; i < static_cast<int>(layers_.size()); ++i) append(i, token, token + 1);
  }

  [[nodiscard]] const SharedLayers& layers() const { return layers_; }
  [[nodiscard]] ClusterKVCache& cache() { return cache_; }
  [[nodiscard]] const DecodePlan& plan() const { return plan_; }
  [[nodiscard]] SequenceId id() const { return id_; }

 private:
  void begin(const StepRow& row) {
    if (plan_.num_rows() == 0) {
      const Workspace workspace{memory_.data(), memory_.size(), pinned_.data(), pinned_.size()};
      plan_ = cache_.plan({&row, 1}, limits_, workspace, stream_);
    } else {
      cache_.update(plan_, {&row, 1}, stream_);
    }
  }
  void append(int layer, int first, int last) {
    const TraceLayer& from = layers_[static_cast<std::size_t>(layer)];
    cache_.append(layer, plan_, slice(from.key, first, last), slice(from.value, first, last),
                  stream_);
  }

  const Trace& trace_;
  SharedLayers layers_;
  Stream stream_;
  ClusterKVCache cache_;
  PlanLimits limits_;
  MemoryNeeds needs_;
  SharedVector<std::byte> memory_;  ///< shared, so that the host can read a choice
  SharedVector<std::byte> pinned_;
  SequenceId id_;
  DecodePlan plan_;
};

double elapsed_ms(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - since)
      .count();
}

}  // namespace

CacheConfig replay_config(const Trace& trace, const std::string& preset, int budget,
                          const ReplayOptions& options) {
  ModelShape model;
  const auto layers = chosen_layers(trace, options.layers);
  model.num_layers = static_cast<int>(layers.size());
  for (const TraceLayer* layer : layers) model.layers.push_back(layer->id);
  model.num_q_heads = trace.num_q_heads;
  model.num_kv_heads = trace.num_kv_heads;
  model.head_dim = trace.head_dim;
  model.softmax_scale = trace.softmax_scale;
  model.logit_softcap = trace.logit_softcap;
  model.kv_dtype = options.rows.value_or(layers.front()->key.dtype);
  if (preset != "standard" && preset != "paper") {
    throw ConfigError(fmt::format("--preset: '{}', expected standard or paper", preset));
  }
  CacheConfig config = preset == "paper" ? CacheConfig::paper(model) : CacheConfig::standard(model);
  config.max_sequences = 1;
  config.max_tokens = trace.num_tokens;
  config.select.budget_tokens = budget;
  config.select.dense_layers = 0;
  config.select.dense_threshold = 0;
  apply(options.residency, config.store.residency);
  apply(options.device_bytes, config.store.device_bytes);
  apply(options.tail, config.select.tail);
  apply(options.grouping, config.select.grouping);
  apply(options.tokens_per_cluster, config.cluster.tokens_per_cluster);
  apply(options.segment_tokens, config.cluster.segment_tokens);
  apply(options.iterations, config.cluster.kmeans_iterations);
  apply(options.metric, config.cluster.metric);
  apply(options.index, config.cluster.index_dtype);
  apply(options.seed, config.cluster.seed);
  if (options.retain) {
    config.store.retention = *options.retain == 0 ? Retention::kLru : Retention::kRetainSteps;
    config.store.retain_steps = std::max(1, *options.retain);
  }
  return config;
}

ReplayResult replay(const Trace& trace, const std::string& preset, int budget,
                    const ReplayOptions& options, Executor& executor, const Progress& progress) {
  const CacheConfig config = replay_config(trace, preset, budget, options);
  Session session(trace, config, options, executor);
  ReplayResult result{};
  const auto start = std::chrono::steady_clock::now();
  session.prefill(options.chunk, [&](double share) { progress(0.2 * share); });
  result.prefill_ms = elapsed_ms(start);
  result.clusters = session.cache().stats().clusters;

  std::vector<LayerMeasure> measures;
  for (int i = 0; i < static_cast<int>(session.layers().size()); ++i) {
    const TraceLayer& layer = session.layers()[static_cast<std::size_t>(i)];
    measures.emplace_back(trace, layer, config, options.backend, executor);
    measures.back().take_rows(session.cache(), i, session.id(), 0, trace.query_start);
  }
  const int queries =
      options.queries > 0 ? std::min(options.queries, trace.num_queries) : trace.num_queries;
  for (int query = 0; query < queries; ++query) {
    const int token = trace.query_start + query;
    session.decode_token(token);
    for (int i = 0; i < static_cast<int>(measures.size()); ++i) {
      LayerMeasure& measure = measures[static_cast<std::size_t>(i)];
      measure.take_rows(session.cache(), i, session.id(), token, token + 1);
      measure.step(session.cache(), i, session.plan(), query);
    }
    progress(0.2 + 0.8 * (query + 1) / queries);
  }
  for (const LayerMeasure& measure : measures) {
    result.layers.push_back(measure.metrics(preset, budget));
    result.retain.push_back(measure.retain());
  }
  return result;
}

}  // namespace clusterkv::tool
