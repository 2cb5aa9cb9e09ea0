// SPDX-License-Identifier: Apache-2.0
//
// One layer, one sequence: a prompt goes in, one query comes out.
#include <clusterkv/clusterkv.hpp>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace ckv = clusterkv;

int main() {
  const int q_heads = 8, kv_heads = 2, head_dim = 64, prompt = 4000;
  std::vector<float> keys(prompt * kv_heads * head_dim), values(keys.size());
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (float& x : keys) x = normal(random);
  for (float& x : values) x = normal(random);
  std::vector<float> query(q_heads * head_dim, 0.3F), out(query.size()), lse(q_heads);

  auto config = ckv::CacheConfig::standard(
      {.num_layers = 1, .num_q_heads = q_heads, .num_kv_heads = kv_heads, .head_dim = head_dim});
  config.select.dense_layers = 0;  // our only layer is to be sparse
  config.max_sequences = 1;
  config.max_tokens = 8192;
  ckv::ClusterKVCache cache(config);

  // Scratch memory is the caller's: one workspace serves all steps within these limits.
  const ckv::PlanLimits limits{.max_rows = 1, .max_new_tokens = prompt};
  const auto needs = ckv::ClusterKVCache::memory_needs(config, ckv::Backend::kCpu, limits);
  void* scratch = std::aligned_alloc(64, (needs.workspace_bytes + 63) / 64 * 64);

  // Prompt: the engine attends to it densely; the cache stores and clusters it.
  ckv::StepRow row{.id = cache.add_sequence(),
                   .num_new_tokens = prompt,
                   .num_query_tokens = 0,
                   .phase = ckv::Phase::kPrefillLast};
  auto plan = cache.plan({&row, 1}, limits, {scratch, needs.workspace_bytes});
  const auto view = [&](std::vector<float>& data, int rows, int heads) {
    return ckv::contiguous_view(data.data(), ckv::DType::kF32, {rows, heads, head_dim});
  };
  cache.append(0, plan, view(keys, prompt, kv_heads), view(values, prompt, kv_heads));

  // One decode step: a token is appended, then its query reads about 530 of 4001 rows.
  std::vector<float> key(kv_heads * head_dim, 0.1F), value(key.size(), 0.2F);
  row = {.id = row.id};
  cache.update(plan, {&row, 1});
  cache.append(0, plan, view(key, 1, kv_heads), view(value, 1, kv_heads));
  cache.attend(
      0, plan,
      {view(query, 1, q_heads),
       {view(out, 1, q_heads), ckv::contiguous_view(lse.data(), ckv::DType::kF32, {1, q_heads})}});

  const auto stats = cache.stats().step;
  std::printf("attended %lld of %lld tokens, estimated mass %.3f, LSE %.3f\n",
              static_cast<long long>(stats.attended_tokens / stats.selections),
              static_cast<long long>(cache.length(row.id)),
              stats.estimated_mass / static_cast<double>(stats.estimates), lse[0]);
  std::free(scratch);
  return stats.attended_tokens / stats.selections == 529 ? 0 : 1;
}
