// SPDX-License-Identifier: Apache-2.0
//
// A batch of sequences of different lengths through several layers: the loop an engine has. Prompts
// arrive in chunks while other sequences decode; rows live in the host store.
#include <clusterkv/clusterkv.hpp>
#include <cstdio>
#include <memory>
#include <new>
#include <random>
#include <vector>

namespace ckv = clusterkv;

namespace {

constexpr int kLayers = 4, kQHeads = 8, kKvHeads = 2, kHeadDim = 64;

/// Stands for the engine's QKV projection.
struct Model {
  std::mt19937 engine{1};
  std::normal_distribution<float> normal;

  std::vector<float> rows(int tokens, int heads) {
    std::vector<float> data(static_cast<std::size_t>(tokens * heads * kHeadDim));
    for (float& x : data) x = normal(engine);
    return data;
  }
};

ckv::TensorView view(std::vector<float>& data, int tokens, int heads) {
  return ckv::contiguous_view(data.data(), ckv::DType::kF32, {tokens, heads, kHeadDim});
}

struct Free {
  void operator()(std::byte* data) const { operator delete[](data, std::align_val_t{64}); }
};

}  // namespace

int main() {
  auto config = ckv::CacheConfig::standard({.num_layers = kLayers,
                                            .num_q_heads = kQHeads,
                                            .num_kv_heads = kKvHeads,
                                            .head_dim = kHeadDim});
  config.select.budget_tokens = 256;
  config.store.residency = ckv::Residency::kHost;
  config.max_sequences = 3;
  config.max_tokens = 16384;
  ckv::ClusterKVCache cache(config);

  const ckv::PlanLimits limits{.max_rows = 3, .max_new_tokens = 1024};
  const auto needs = ckv::ClusterKVCache::memory_needs(config, ckv::Backend::kCpu, limits);
  const std::unique_ptr<std::byte[], Free> scratch(new (std::align_val_t{64})
                                                       std::byte[needs.workspace_bytes]);

  const ckv::SequenceId ids[] = {cache.add_sequence(), cache.add_sequence(), cache.add_sequence()};
  const int prompts[] = {3000, 900, 20};
  ckv::DecodePlan plan;
  Model model;
  for (int step = 0; step < 40; ++step) {
    // Who does what: prompts in chunks of 500, then one token a step.
    std::vector<ckv::StepRow> rows;
    for (int i = 0; i < 3; ++i) {
      const int left = prompts[i] - static_cast<int>(cache.length(ids[i]));
      ckv::StepRow row{.id = ids[i]};
      if (left > 0) {
        row.num_new_tokens = left < 300 ? left : 300;
        row.phase = left <= 300 ? ckv::Phase::kPrefillLast : ckv::Phase::kPrefill;
      }
      rows.push_back(row);
    }
    if (step == 0) {
      plan = cache.plan(rows, limits, {scratch.get(), needs.workspace_bytes});
    } else {
      cache.update(plan, rows);
    }
    for (int layer = 0; layer < kLayers; ++layer) {
      auto key = model.rows(plan.num_new_tokens(), kKvHeads);
      auto value = model.rows(plan.num_new_tokens(), kKvHeads);
      auto query = model.rows(plan.num_query_tokens(), kQHeads);
      std::vector<float> out(query.size());
      cache.append(layer, plan, view(key, plan.num_new_tokens(), kKvHeads),
                   view(value, plan.num_new_tokens(), kKvHeads));
      cache.attend(layer, plan,
                   {view(query, plan.num_query_tokens(), kQHeads),
                    {view(out, plan.num_query_tokens(), kQHeads)}});
    }
  }

  const auto stats = cache.stats();
  std::printf(
      "%lld tokens, %lld clusters; last step: %lld rows attended, %lld quads hit, %lld "
      "copied\n",
      static_cast<long long>(stats.live_tokens), static_cast<long long>(stats.clusters),
      static_cast<long long>(stats.step.attended_tokens),
      static_cast<long long>(stats.step.quad_hits), static_cast<long long>(stats.step.quad_misses));
  for (const auto id : ids) cache.remove(id);
  return cache.stats().live_tokens == 0 ? 0 : 1;
}
