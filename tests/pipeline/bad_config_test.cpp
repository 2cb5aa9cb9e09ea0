// SPDX-License-Identifier: Apache-2.0
//
// Every field of a config that makes no sense is refused by its name.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/errors.hpp"
#include "tests/support/harness.hpp"

namespace clusterkv::testing {
namespace {

struct ConfigFault {
  const char* field;
  std::function<void(CacheConfig&)> spoil;
};

/// Every field as large as it may be by itself.
void largest(CacheConfig& c) {
  c.model = {.num_layers = 4096, .num_q_heads = 4096, .num_kv_heads = 4096, .head_dim = 256};
  c.model.kv_dtype = DType::kF32;
  c.max_tokens = (std::int64_t{1} << 31) - 1;
}

std::vector<ConfigFault> config_faults() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  return {
      {"model.num_layers", [](CacheConfig& c) { c.model.num_layers = 0; }},
      {"model.num_kv_heads", [](CacheConfig& c) { c.model.num_kv_heads = -1; }},
      {"model.num_q_heads", [](CacheConfig& c) { c.model.num_q_heads = 5; }},
      {"model.head_dim", [](CacheConfig& c) { c.model.head_dim = 72; }},
      {"model.value_dim", [](CacheConfig& c) { c.model.value_dim = 72; }},
      {"model.value_dim", [](CacheConfig& c) { c.model.value_dim = -64; }},
      {"model.kv_dtype", [](CacheConfig& c) { c.model.kv_dtype = DType::kI32; }},
      {"model.softmax_scale", [=](CacheConfig& c) { c.model.softmax_scale = nan; }},
      {"model.softmax_scale", [](CacheConfig& c) { c.model.softmax_scale = -1; }},
      {"model.softmax_scale", [](CacheConfig& c) { c.model.softmax_scale = INFINITY; }},
      {"model.logit_softcap", [](CacheConfig& c) { c.model.logit_softcap = -30; }},
      {"model.logit_softcap", [](CacheConfig& c) { c.model.logit_softcap = 1e-6F; }},
      {"model.logit_softcap", [](CacheConfig& c) { c.model.logit_softcap = INFINITY; }},
      {"model.logit_softcap", [=](CacheConfig& c) { c.model.logit_softcap = nan; }},
      {"model.layers",
       [](CacheConfig& c) {
         c.model.layers = {1, 2, 3};
       }},
      {"model.layers", [](CacheConfig& c) { c.model.layers = {-1}; }},
      {"cluster.tokens_per_cluster", [](CacheConfig& c) { c.cluster.tokens_per_cluster = 0; }},
      {"cluster.segment_tokens", [](CacheConfig& c) { c.cluster.segment_tokens = -1; }},
      {"cluster.window_tokens", [](CacheConfig& c) { c.cluster.window_tokens = 0; }},
      {"cluster.min_window_clusters", [](CacheConfig& c) { c.cluster.min_window_clusters = 0; }},
      {"cluster.kmeans_iterations", [](CacheConfig& c) { c.cluster.kmeans_iterations = 0; }},
      {"cluster.sink_tokens", [](CacheConfig& c) { c.cluster.sink_tokens = -1; }},
      {"cluster.metric", [](CacheConfig& c) { c.cluster.metric = Metric{9}; }},
      {"cluster.index_dtype", [](CacheConfig& c) { c.cluster.index_dtype = IndexDType{9}; }},
      {"select.budget_tokens", [](CacheConfig& c) { c.select.budget_tokens = 0; }},
      {"select.grouping", [](CacheConfig& c) { c.select.grouping = HeadGrouping{9}; }},
      {"select.tail", [](CacheConfig& c) { c.select.tail = Tail{9}; }},
      {"select.tail_share", [=](CacheConfig& c) { c.select.tail_share = nan; }},
      {"select.dense_layers", [](CacheConfig& c) { c.select.dense_layers = -1; }},
      {"select.dense_threshold", [=](CacheConfig& c) { c.select.dense_threshold = nan; }},
      {"store.residency", [](CacheConfig& c) { c.store.residency = Residency{9}; }},
      {"store.retention", [](CacheConfig& c) { c.store.retention = Retention{9}; }},
      {"store.retain_steps", [](CacheConfig& c) { c.store.retain_steps = 65; }},
      {"store.misses", [](CacheConfig& c) { c.store.misses = Misses{9}; }},
      {"store.misses: kEstimateMisses, expected with a select.tail",
       [](CacheConfig& c) {
         c.store.residency = Residency::kHost;
         c.store.misses = Misses::kEstimateMisses;
         c.store.transfer_tokens = 8;
         c.select.tail = Tail::kNone;
       }},
      {"store.transfer_tokens",
       [](CacheConfig& c) {
         c.store.residency = Residency::kHost;
         c.store.misses = Misses::kEstimateMisses;
         c.store.transfer_tokens = 3;
       }},
      {"store.transfer_tokens", [](CacheConfig& c) { c.store.transfer_tokens = 8; }},
      {"store.live_tokens", [](CacheConfig& c) { c.store.live_tokens = -1; }},
      {"store.cold_path",
       [](CacheConfig& c) {
         c.store.residency = Residency::kDevice;
         c.store.cold_path = "/tmp";
       }},
      {"store.device_bytes", [](CacheConfig& c) { c.store.residency = Residency::kHybrid; }},
      {"store.host_bytes",
       [](CacheConfig& c) {
         c.store.residency = Residency::kHost;
         c.store.host_bytes = 1000;
       }},
      {"max_sequences", [](CacheConfig& c) { c.max_sequences = 0; }},
      {"max_tokens", [](CacheConfig& c) { c.max_tokens = 0; }},
      {"max_tokens", [](CacheConfig& c) { c.max_tokens = std::int64_t{1} << 40; }},
      {"max_tokens", [](CacheConfig& c) { c.max_tokens = std::int64_t{1} << 31; }},
      {"max_tokens: expected stores of less than 2^63 bytes", largest},
      {"max_tokens: expected stores of less than 2^63 bytes",
       [](CacheConfig& c) {
         largest(c);
         c.store.residency = Residency::kHost;
         c.select.budget_tokens = 1 << 24;
       }},
      {"max_sequences: expected sinks and pending tokens in at most 2^32 rows",
       [](CacheConfig& c) {
         c.max_sequences = 1 << 20;
         c.cluster.sink_tokens = 1 << 24;
       }},
  };
}

TEST(BadConfig, IsRefusedByNameEverywhere) {
  for (const ConfigFault& fault : config_faults()) {
    CacheConfig config = small_config(small_model());
    fault.spoil(config);
    expect_error<ConfigError>([&] { ClusterKVCache cache(config); }, fault.field);
    expect_error<ConfigError>(
        [&] { (void)ClusterKVCache::memory_needs(config, Backend::kCpu, {}); }, fault.field);
    if (std::string(fault.field).starts_with("store.host")) continue;  // depends on sizes
    const Support support = ClusterKVCache::supports(config, Backend::kCpu);
    EXPECT_FALSE(support.ok);
    EXPECT_NE(std::string(support.reason).find(fault.field), std::string::npos) << support.reason;
    EXPECT_FALSE(ClusterSelector::supports(config, Backend::kCpu).ok);
    expect_error<ConfigError>([&] { ClusterSelector selector(config); }, fault.field);
  }
}

/// A workspace that nobody has is refused by its limits; numbers at the edge do not wrap round.
TEST(BadConfig, LimitsAtTheEdge) {
  CacheConfig config = small_config(small_model(1, 4096, 4096, 256));
  config.select.grouping = HeadGrouping::kPerQueryHead;
  config.max_tokens = (std::int64_t{1} << 31) - 1;
  config.select.dense_threshold = 3e38F;
  EXPECT_TRUE(ClusterKVCache::supports(config, Backend::kCpu).ok);
  expect_error<ConfigError>(
      [&] {
        (void)ClusterKVCache::memory_needs(config, Backend::kCpu, {1 << 20, 1, 1 << 24});
      },
      "limits: 1048576 rows");
  const MemoryNeeds needs = ClusterKVCache::memory_needs(config, Backend::kCpu, {1, 1, 0});
  // Three lists of as many entries as there are tokens, a KV head each.
  EXPECT_GT(needs.workspace_bytes, 12ULL * 4096 * static_cast<std::size_t>(config.max_tokens));
  EXPECT_GT(needs.device_bytes, 2048ULL * 4096 * static_cast<std::size_t>(config.max_tokens));
}

TEST(BadConfig, CudaIsUnavailableInThisBuild) {
  const CacheConfig config = small_config(small_model());
  EXPECT_TRUE(ClusterKVCache::supports(config, Backend::kCpu).ok);
  EXPECT_FALSE(ClusterKVCache::supports(config, Backend::kCuda).ok);
  Resources resources;
  resources.backend = Backend::kCuda;
  expect_error<BackendUnavailable>([&] { ClusterKVCache cache(config, resources); }, "CUDA");
}

}  // namespace
}  // namespace clusterkv::testing
