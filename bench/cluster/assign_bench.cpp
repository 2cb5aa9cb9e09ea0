// SPDX-License-Identifier: Apache-2.0
//
// One assignment of 2048 keys to 256 centroids, on one thread: what clustering spends its time on.
// `of_limit` is the share of the multiply-adds that this machine does in registers; `of_tiles`, with
// matrix units, that of their products.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "bench/support/limits.hpp"
#include "kernels/cluster/cluster.hpp"

namespace clusterkv::bench {
namespace {

constexpr int kTokens = 2048, kClusters = 256;

void assign(benchmark::State& state) {
  const auto head_dim = static_cast<int>(state.range(0));
  const auto dim = static_cast<std::size_t>(head_dim);
  std::mt19937 random(1);
  std::vector<std::uint16_t> rows(kTokens * 2 * dim);
  for (auto& x : rows) x = static_cast<std::uint16_t>(0x3f00 + random() % 256);
  std::vector<std::uint32_t> pages(kTokens / kPageRows);
  std::iota(pages.begin(), pages.end(), 0U);
  std::vector<float> centroids(kClusters * dim), panels(centroids.size()), bias(kClusters);
  for (float& x : centroids) x = static_cast<float>(random() % 1000) / 1000;
  std::vector<std::int32_t> labels(kTokens);
  std::vector<std::byte> tiles(cluster::assign_tiles_bytes(kClusters, head_dim));
  const cluster::CpuOps& ops = cluster::cpu();
  ops.pack_centroids(
      {centroids.data(), kClusters, head_dim, Metric::kCosine, panels.data(), bias.data()});
  const RowStore store{reinterpret_cast<std::byte*>(rows.data()), rows.size() * 2, 4 * dim,
                       DType::kBF16, head_dim};
  for (auto _ : state) {
    ops.assign({{store, pages.data(), 0, kTokens, 0},
                kClusters,
                panels.data(),
                bias.data(),
                labels.data(),
                tiles.data()});
    benchmark::ClobberMemory();
  }
  const double operations = 2.0 * kTokens * kClusters * head_dim;
  const auto rate = [](double value) {
    return benchmark::Counter(value, benchmark::Counter::kIsIterationInvariantRate);
  };
  state.counters["flop/s"] = rate(operations);
  state.counters["of_limit"] = rate(operations / fma_rate(1));
  // Each product with a centroid is one with each of its halves.
  if (cpu_isa() == Isa::kAmx) state.counters["of_tiles"] = rate(2 * operations / tile_rate(1));
}

BENCHMARK(assign)
    ->Name("cluster/assign/cpu/by_head_dim")
    ->ArgName("head_dim")
    ->Arg(64)
    ->Arg(128)
    ->Arg(256)
    ->Repetitions(kRepeats)
    ->ReportAggregatesOnly()
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace clusterkv::bench
