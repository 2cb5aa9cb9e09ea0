// SPDX-License-Identifier: Apache-2.0
//
// One decode step of one layer, 32 query / 8 KV heads, head_dim 128, bf16 rows, beside dense_decode
// over the same context. Axes: context, budget.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "clusterkv/clusterkv.hpp"

namespace {

using namespace clusterkv;

constexpr int kQHeads = 32, kKvHeads = 8, kHeadDim = 128, kMaxBudget = 4096;

/// Rows of random bf16 numbers on 256 topics, so that clustering has something to find.
std::vector<std::uint16_t> make_rows(int tokens) {
  std::mt19937 random(1);
  std::vector<std::uint16_t> rows(static_cast<std::size_t>(tokens) * kKvHeads * kHeadDim);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto topic = static_cast<std::uint32_t>(i / (kKvHeads * kHeadDim * 32) * 2654435761U);
    const std::uint32_t column = static_cast<std::uint32_t>(i % kHeadDim) * 40503U;
    const float value = static_cast<float>(static_cast<int>((topic ^ column) % 2001) - 1000) / 500 +
                        static_cast<float>(random() % 1000) / 1000;
    rows[i] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
  }
  return rows;
}

/// A cache filled to `context` tokens; made once a context.
struct Filled {
  explicit Filled(int context) : rows(make_rows(context)) {
    CacheConfig config = CacheConfig::standard(
        {.num_layers = 1, .num_q_heads = kQHeads, .num_kv_heads = kKvHeads, .head_dim = kHeadDim});
    config.select.dense_layers = 0;
    config.select.dense_threshold = 0;
    config.max_sequences = 1;
    config.max_tokens = context + 100000;
    cache = std::make_unique<ClusterKVCache>(config);
    const PlanLimits limits{1, context, kMaxBudget};
    const auto needs = ClusterKVCache::memory_needs(config, Backend::kCpu, limits);
    scratch.resize(needs.workspace_bytes + 64);
    void* aligned = scratch.data();
    std::size_t room = scratch.size();
    std::align(64, needs.workspace_bytes, aligned, room);
    id = cache->add_sequence();
    const StepRow row{id, context, 0, Phase::kPrefillLast};
    plan = cache->plan({&row, 1}, limits, {aligned, needs.workspace_bytes});
    const auto view = contiguous_view(rows.data(), DType::kBF16, {context, kKvHeads, kHeadDim});
    cache->append(0, plan, view, view);
    query.assign(kQHeads * kHeadDim, 0.05F);
    out.resize(query.size());
  }
  TensorView query_view() const {
    return contiguous_view(query.data(), DType::kF32, {1, kQHeads, kHeadDim});
  }
  AttentionOut out_view() const {
    return {contiguous_view(out.data(), DType::kF32, {1, kQHeads, kHeadDim})};
  }

  std::vector<std::uint16_t> rows;
  std::vector<std::byte> scratch;
  std::unique_ptr<ClusterKVCache> cache;
  SequenceId id{};
  DecodePlan plan;
  std::vector<float> query, out;
};

Filled& filled(int context) {
  static std::map<int, std::unique_ptr<Filled>> made;
  auto& entry = made[context];
  if (!entry) entry = std::make_unique<Filled>(context);
  return *entry;
}

void decode_step(benchmark::State& state) {
  Filled& f = filled(static_cast<int>(state.range(0)));
  const StepRow row{f.id, 1, 1, Phase::kDecode, static_cast<int>(state.range(1))};
  f.cache->update(f.plan, {&row, 1});
  const auto one = contiguous_view(f.rows.data(), DType::kBF16, {1, kKvHeads, kHeadDim});
  f.cache->append(0, f.plan, one, one);
  for (auto _ : state) f.cache->attend(0, f.plan, {f.query_view(), f.out_view()});
  const StepStats s = f.cache->stats().step;
  state.SetBytesProcessed(s.bytes_touched() * kKvHeads / s.selections * state.iterations());
}

void dense(benchmark::State& state) {
  const auto context = state.range(0);
  Filled& f = filled(static_cast<int>(context));
  const auto rows = contiguous_view(f.rows.data(), DType::kBF16, {1, context, kKvHeads, kHeadDim});
  const auto pool = make_thread_pool();
  for (auto _ : state) {
    dense_decode({f.query_view(), rows, rows}, f.out_view(), {Backend::kCpu, nullptr, pool.get()});
  }
  state.SetBytesProcessed(2 * context * kKvHeads * kHeadDim * 2 * state.iterations());
}

BENCHMARK(decode_step)
    ->Name("pipeline/decode_step/cpu/by_context")
    ->ArgNames({"context", "budget"})
    ->ArgsProduct({{4096, 8192, 32768}, {512}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(decode_step)
    ->Name("pipeline/decode_step/cpu/by_budget")
    ->ArgNames({"context", "budget"})
    ->ArgsProduct({{32768}, {256, 1024, 4096}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(dense)
    ->Name("pipeline/dense_decode/cpu/by_context")
    ->ArgNames({"context"})
    ->ArgsProduct({{4096, 8192, 32768}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
