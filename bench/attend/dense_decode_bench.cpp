// SPDX-License-Identifier: Apache-2.0
//
// dense_decode of 32 query / 8 KV heads, head_dim 128, bf16, where an engine's rows lie. `of_limit` is the
// share of read bandwidth.
#include <benchmark/benchmark.h>

#include <map>
#include <memory>

#include "bench/support/filled_cache.hpp"
#include "bench/support/limits.hpp"

namespace clusterkv::bench {
namespace {

void dense_decode(benchmark::State& state, Layout layout) {
  const auto context = static_cast<int>(state.range(0));
  const auto threads = static_cast<int>(state.range(1));
  FilledCache& cache = filled_cache({.context = context});
  const auto pool = make_thread_pool(threads);
  for (auto _ : state) cache.dense(*pool, layout);
  const std::int64_t bytes = FilledCache::kTokenBytes * context;
  state.SetBytesProcessed(bytes * state.iterations());
  state.counters["of_limit"] =
      benchmark::Counter(static_cast<double>(bytes) / read_bandwidth(threads),
                         benchmark::Counter::kIsIterationInvariantRate);
}

void contexts(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"context", "threads"})
      ->ArgsProduct({{4096, 32768}, {1, 2}})
      ->Repetitions(kRepeats)
      ->ReportAggregatesOnly()
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}
BENCHMARK_CAPTURE(dense_decode, hnd, Layout::kHnd)
    ->Name("attend/dense_decode/cpu/hnd_by_context")
    ->Apply(contexts);
BENCHMARK_CAPTURE(dense_decode, nhd, Layout::kNhd)
    ->Name("attend/dense_decode/cpu/nhd_by_context")
    ->Apply(contexts);

}  // namespace
}  // namespace clusterkv::bench
