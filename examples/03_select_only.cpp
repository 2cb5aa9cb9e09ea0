// SPDX-License-Identifier: Apache-2.0
//
// The index alone: keys and values stay in the engine's own pool. The selector names the positions,
// the engine attends to them with its own kernel, and the rest is added from cluster means.
#include <clusterkv/clusterkv.hpp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace ckv = clusterkv;

int main() {
  const int q_heads = 8, kv_heads = 2, head_dim = 64, tokens = 3000;
  // The engine's pool: [token, kv_head, head_dim].
  std::vector<float> keys(tokens * kv_heads * head_dim), values(keys.size());
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  // Each 50 tokens are about one topic; the query is about the topic of tokens 1000 to 1049.
  const auto topic = [](int token, int d) {
    return 2.0F * std::sin(static_cast<float>(37 * (token / 50) + d));
  };
  for (int t = 0, i = 0; t < tokens; ++t) {
    for (int d = 0; d < kv_heads * head_dim; ++d, ++i) {
      keys.data()[i] = topic(t, d % head_dim) + 0.5F * normal(random);
      values.data()[i] = normal(random);
    }
  }
  std::vector<float> query(q_heads * head_dim);
  for (int i = 0; i < q_heads * head_dim; ++i) query.data()[i] = topic(1000, i % head_dim);
  const auto rows = [&](std::vector<float>& data, int first, int last) {
    return ckv::contiguous_view(data.data() + first * kv_heads * head_dim, ckv::DType::kF32,
                                {last - first, kv_heads, head_dim});
  };

  auto config = ckv::CacheConfig::standard({.num_layers = 1,
                                            .num_q_heads = q_heads,
                                            .num_kv_heads = kv_heads,
                                            .head_dim = head_dim,
                                            .kv_dtype = ckv::DType::kF32});
  config.select.dense_layers = 0;
  config.max_sequences = 1;
  config.max_tokens = 4096;
  ckv::ClusterSelector selector(config);
  const ckv::PlanLimits limits{.max_rows = 1, .max_new_tokens = tokens};
  const auto needs = ckv::ClusterSelector::memory_needs(config, ckv::Backend::kCpu, limits);
  void* scratch = std::aligned_alloc(64, (needs.workspace_bytes + 63) / 64 * 64);

  ckv::StepRow row{.id = selector.add_sequence(),
                   .num_new_tokens = tokens - 1,
                   .num_query_tokens = 0,
                   .phase = ckv::Phase::kPrefillLast};
  auto plan = selector.plan({&row, 1}, limits, {scratch, needs.workspace_bytes});
  selector.append(0, plan, rows(keys, 0, tokens - 1), rows(values, 0, tokens - 1));
  row = {.id = row.id};
  selector.update(plan, {&row, 1});
  selector.append(0, plan, rows(keys, tokens - 1, tokens), rows(values, tokens - 1, tokens));

  // Which positions? One list for each KV head.
  const auto query_view =
      ckv::contiguous_view(query.data(), ckv::DType::kF32, {1, q_heads, head_dim});
  const ckv::Selection selection = selector.select(0, plan, query_view);
  std::vector<std::int32_t> ids(kv_heads * 1024), counts(kv_heads);
  const auto id_view = ckv::contiguous_view(ids.data(), ckv::DType::kI32, {1, kv_heads, 1024});
  const auto count_view = ckv::contiguous_view(counts.data(), ckv::DType::kI32, {1, kv_heads});
  selector.token_ids(0, plan, selection, id_view, count_view);

  // The engine's kernel (here ours), the rest, and both together.
  std::vector<float> out[3], lse[3];
  ckv::AttentionOut parts[3];
  for (int i = 0; i < 3; ++i) {
    out[i].resize(query.size());
    lse[i].resize(q_heads);
    parts[i] = {ckv::contiguous_view(out[i].data(), ckv::DType::kF32, {1, q_heads, head_dim}),
                ckv::contiguous_view(lse[i].data(), ckv::DType::kF32, {1, q_heads})};
  }
  const auto pool = [&](std::vector<float>& data) {
    return ckv::contiguous_view(data.data(), ckv::DType::kF32, {1, tokens, kv_heads, head_dim});
  };
  const ckv::DecodeArgs engine{query_view, pool(keys), pool(values)};
  ckv::sparse_decode(engine, id_view, count_view, parts[0]);
  selector.attend_tail(0, plan, selection, query_view, parts[1]);
  ckv::merge_states({parts, 2}, parts[2]);

  ckv::dense_decode(engine, parts[0]);
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < query.size(); ++i) {
    difference += std::pow(out[2][i] - out[0][i], 2);
    norm += std::pow(out[0][i], 2);
  }
  const double error = std::sqrt(difference / norm);
  std::printf("attended %d of %d tokens, error %.4f\n", counts[0], tokens, error);
  std::free(scratch);
  return error < 0.1 ? 0 : 1;
}
