// SPDX-License-Identifier: Apache-2.0
//
// Storing and clustering a prompt of one KV head, head_dim 64, standard preset: linear in tokens.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <new>
#include <random>
#include <vector>

#include "clusterkv/clusterkv.hpp"

namespace {

using namespace clusterkv;

void prefill(benchmark::State& state) {
  const auto tokens = static_cast<int>(state.range(0));
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> rows(static_cast<std::size_t>(tokens) * 64);
  for (float& x : rows) x = normal(random);
  const auto view = contiguous_view(rows.data(), DType::kF32, {tokens, 1, 64});

  CacheConfig config =
      CacheConfig::standard({.num_layers = 1, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 64});
  config.select.dense_layers = 0;
  config.max_sequences = 1;
  config.max_tokens = tokens;
  const auto pool = make_thread_pool(1);
  ClusterKVCache cache(config, {Backend::kCpu, pool.get(), nullptr});
  const PlanLimits limits{1, tokens, 0};
  const auto needs = ClusterKVCache::memory_needs(config, Backend::kCpu, limits);
  auto* scratch = new (std::align_val_t{64}) std::byte[needs.workspace_bytes];
  for (auto _ : state) {
    const StepRow row{cache.add_sequence(), tokens, 0, Phase::kPrefillLast};
    const DecodePlan plan =
        cache.plan({&row, 1}, limits, {scratch, needs.workspace_bytes, nullptr, 0});
    cache.append(0, plan, view, view);
    cache.remove(row.id);
  }
  operator delete[](scratch, std::align_val_t{64});
  state.SetItemsProcessed(state.iterations() * tokens);
}

BENCHMARK(prefill)
    ->Name("cluster/prefill/cpu/by_context")
    ->ArgName("tokens")
    ->RangeMultiplier(2)
    ->Range(8192, 262144)
    ->MinTime(2)
    ->Unit(benchmark::kMillisecond);

}  // namespace
