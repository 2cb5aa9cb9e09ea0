// SPDX-License-Identifier: Apache-2.0
#include "clusterkv/config.hpp"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "kernels/common/tuning.hpp"
#include "src/runtime/check.hpp"
#include "src/runtime/check_config.hpp"

namespace clusterkv {
inline namespace v0 {

CacheConfig CacheConfig::standard(const ModelShape& model) {
  CacheConfig config;
  config.model = model;
  return config;
}

CacheConfig CacheConfig::paper(const ModelShape& model) {
  CacheConfig config;
  config.model = model;
  config.cluster.tokens_per_cluster = 80;
  config.cluster.segment_tokens = 0;
  config.cluster.kmeans_iterations = 10;
  config.cluster.seed = 1;
  config.cluster.index_dtype = IndexDType::kF32;
  config.select.budget_tokens = 1024;
  config.select.grouping = HeadGrouping::kPerQueryHead;
  config.select.tail = Tail::kNone;
  config.store.retention = Retention::kRetainSteps;
  return config;
}

}  // namespace v0

namespace runtime {
namespace {

bool strictly_ascending(const std::vector<int>& layers) {
  return std::adjacent_find(layers.begin(), layers.end(), std::greater_equal<>()) == layers.end();
}

/// Calls check(ok, reason, value) for each rule until one returns false.
template <class Check>
bool check_model(const ModelShape& m, const Check& check) {
  const bool layers_match = m.layers.empty() || static_cast<int>(m.layers.size()) == m.num_layers;
  return check(m.num_layers > 0 && m.num_layers <= 4096, "model.num_layers: expected 1 .. 4096",
               m.num_layers) &&
         check(m.num_kv_heads > 0 && m.num_kv_heads <= 4096,
               "model.num_kv_heads: expected 1 .. 4096", m.num_kv_heads) &&
         check(m.num_q_heads > 0 && m.num_q_heads <= 4096, "model.num_q_heads: expected 1 .. 4096",
               m.num_q_heads) &&
         check(m.num_q_heads % m.num_kv_heads == 0,
               "model.num_q_heads: expected a multiple of num_kv_heads", m.num_q_heads) &&
         check(is_head_dim(m.head_dim), "model.head_dim: expected 64, 80, 96, 128 or 256",
               m.head_dim) &&
         check(m.value_dim == 0 || is_head_dim(m.value_dim),
               "model.value_dim: expected 0, 64, 80, 96, 128 or 256", m.value_dim) &&
         check(m.kv_dtype == DType::kF32 || m.kv_dtype == DType::kF16 || m.kv_dtype == DType::kBF16,
               "model.kv_dtype: expected kF32, kF16 or kBF16", static_cast<int>(m.kv_dtype)) &&
         check(std::isfinite(m.softmax_scale) && m.softmax_scale >= 0.0F,
               "model.softmax_scale: expected finite and >= 0", m.softmax_scale) &&
         check(is_softcap(m.logit_softcap), "model.logit_softcap: expected 0, or 1e-3 .. 1e6",
               m.logit_softcap) &&
         check(layers_match, "model.layers: expected none, or num_layers ids", m.layers.size()) &&
         check(layers_match && (m.layers.empty() || m.layers.front() >= 0) &&
                   strictly_ascending(m.layers),
               "model.layers: expected ascending ids >= 0", m.layers.size());
}

template <class Check>
bool check_cluster(const ClusterConfig& c, const Check& check) {
  constexpr int kMost = 1 << 24;
  const auto between = [](int value, int low) { return value >= low && value <= kMost; };
  return check(between(c.tokens_per_cluster, 1), "cluster.tokens_per_cluster: expected 1 .. 2^24",
               c.tokens_per_cluster) &&
         check(between(c.segment_tokens, 0), "cluster.segment_tokens: expected 0 .. 2^24",
               c.segment_tokens) &&
         check(between(c.window_tokens, 1), "cluster.window_tokens: expected 1 .. 2^24",
               c.window_tokens) &&
         check(between(c.min_window_clusters, 1), "cluster.min_window_clusters: expected 1 .. 2^24",
               c.min_window_clusters) &&
         check(c.kmeans_iterations > 0 && c.kmeans_iterations <= 10000,
               "cluster.kmeans_iterations: expected 1 .. 10000", c.kmeans_iterations) &&
         check(between(c.sink_tokens, 0), "cluster.sink_tokens: expected 0 .. 2^24",
               c.sink_tokens) &&
         check(c.metric <= Metric::kInnerProduct,
               "cluster.metric: expected kCosine, kL2 or kInnerProduct",
               static_cast<int>(c.metric)) &&
         check(c.index_dtype <= IndexDType::kF32,
               "cluster.index_dtype: expected kInt8, kBF16 or kF32",
               static_cast<int>(c.index_dtype));
}

template <class Check>
bool check_select(const SelectConfig& s, const Check& check) {
  return check(s.budget_tokens > 0 && s.budget_tokens <= 1 << 24,
               "select.budget_tokens: expected 1 .. 2^24", s.budget_tokens) &&
         check(s.grouping <= HeadGrouping::kPerQueryHead,
               "select.grouping: expected kShared or kPerQueryHead",
               static_cast<int>(s.grouping)) &&
         check(s.tail <= Tail::kSecondMoment, "select.tail: expected kNone, kMean or kSecondMoment",
               static_cast<int>(s.tail)) &&
         check(s.tail_share >= 0.0F && s.tail_share <= 1.0F, "select.tail_share: expected 0 .. 1",
               s.tail_share) &&
         check(s.dense_layers >= 0, "select.dense_layers: expected >= 0", s.dense_layers) &&
         check(s.dense_threshold >= 0.0F && std::isfinite(s.dense_threshold),
               "select.dense_threshold: expected finite and >= 0", s.dense_threshold);
}

template <class Check>
bool check_store(const CacheConfig& config, const Check& check) {
  const StoreConfig& s = config.store;
  const bool estimates = s.misses == Misses::kEstimateMisses;
  return check(s.residency <= Residency::kHybrid,
               "store.residency: expected kAuto, kDevice, kHost or kHybrid",
               static_cast<int>(s.residency)) &&
         check(s.residency != Residency::kHybrid || s.device_bytes > 0,
               "store.device_bytes: expected > 0 with Residency::kHybrid", s.device_bytes) &&
         check(s.cold_path.empty() || s.residency != Residency::kDevice,
               "store.cold_path: expected none with Residency::kDevice", s.cold_path) &&
         check(s.live_tokens >= 0, "store.live_tokens: expected >= 0", s.live_tokens) &&
         check(s.retention <= Retention::kRetainSteps,
               "store.retention: expected kLru or kRetainSteps", static_cast<int>(s.retention)) &&
         check(s.retain_steps >= 1 && s.retain_steps <= 64, "store.retain_steps: expected 1 .. 64",
               s.retain_steps) &&
         check(s.misses <= Misses::kEstimateMisses,
               "store.misses: expected kCopyMisses or kEstimateMisses",
               static_cast<int>(s.misses)) &&
         check(!estimates || config.select.tail != Tail::kNone,
               "store.misses: kEstimateMisses, expected with a select.tail",
               static_cast<int>(config.select.tail)) &&
         check(estimates ? s.transfer_tokens >= kQuadRows && s.transfer_tokens <= 1 << 24
                         : s.transfer_tokens == 0,
               "store.transfer_tokens: expected 4 .. 2^24 with kEstimateMisses, else 0",
               s.transfer_tokens) &&
         check(config.max_sequences > 0 && config.max_sequences <= 1 << 20,
               "max_sequences: expected 1 .. 2^20", config.max_sequences) &&
         check(config.max_tokens > 0 && config.max_tokens < std::int64_t{1} << 31,
               "max_tokens: expected 1 .. 2^31 - 1", config.max_tokens);
}

template <class Check>
void check_all(const CacheConfig& config, const Check& check) {
  (void)(check_model(config.model, check) && check_cluster(config.cluster, check) &&
         check_select(config.select, check) && check_store(config, check));
}

}  // namespace

const char* find_fault(const CacheConfig& config) noexcept {
  const char* fault = nullptr;
  check_all(config, [&](bool ok, const char* reason, auto) {
    if (!ok) fault = reason;
    return ok;
  });
  return fault;
}

void check_config(const CacheConfig& config) {
  check_all(config, [](bool ok, const char* reason, auto value) {
    if (!ok) fail<ConfigError>("{}, got {}", reason, value);
    return true;
  });
}

bool is_head_dim(std::int64_t dim) noexcept {
  return dim == 64 || dim == 80 || dim == 96 || dim == 128 || dim == 256;
}

bool is_softcap(float softcap) noexcept {
  return softcap == 0.0F || (softcap >= 1e-3F && softcap <= 1e6F);
}

void check_limits(const PlanLimits& limits) {
  if (limits.max_rows < 1 || limits.max_rows > 1 << 20) {
    fail<ShapeError>("limits.max_rows: {}, expected 1 .. 2^20", limits.max_rows);
  }
  if (limits.max_new_tokens < 1) {
    fail<ShapeError>("limits.max_new_tokens: {}, expected >= 1", limits.max_new_tokens);
  }
  if (limits.max_budget_tokens < 0 || limits.max_budget_tokens > 1 << 24) {
    fail<ShapeError>("limits.max_budget_tokens: {}, expected 0 .. 2^24", limits.max_budget_tokens);
  }
  if (limits.max_context_tokens < 0 || limits.max_context_tokens > std::int64_t{1} << 40) {
    fail<ShapeError>("limits.max_context_tokens: {}, expected 0 .. 2^40",
                     limits.max_context_tokens);
  }
  if (limits.max_query_tokens < 1 || limits.max_query_tokens > 16) {
    fail<ShapeError>("limits.max_query_tokens: {}, expected 1 .. 16", limits.max_query_tokens);
  }
}

}  // namespace runtime
}  // namespace clusterkv
