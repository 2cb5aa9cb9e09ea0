// SPDX-License-Identifier: Apache-2.0
//
// One decode step of one layer beside dense_decode over the same tokens (`vs_dense`: how many times
// faster), and beside what its bytes allow on this machine (`of_limit`): index and value means at read
// bandwidth, rows at the gather bandwidth of runs as long as theirs. The parts of a step are the parallel
// regions it is made of. Each figure is the median of 9 repetitions.
#include <benchmark/benchmark.h>

#include <array>
#include <chrono>
#include <map>
#include <memory>
#include <tuple>

#include "bench/support/filled_cache.hpp"
#include "bench/support/limits.hpp"

namespace clusterkv::bench {
namespace {

/// Adds up the time of each parallel region of a step: they come in the same order every time.
class TimedExecutor final : public Executor {
 public:
  static constexpr std::array kRegions{"score", "choose", "expand", "attend", "merge"};

  explicit TimedExecutor(int threads) : pool_(make_thread_pool(threads)) {}
  [[nodiscard]] int concurrency() const noexcept override { return pool_->concurrency(); }
  void run(int num_tasks, void (*task)(void*, int), void* arg) override {
    const auto start = std::chrono::steady_clock::now();
    pool_->run(num_tasks, task, arg);
    seconds_[next_] +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    next_ = (next_ + 1) % kRegions.size();
  }
  void begin() { next_ = 0; }
  [[nodiscard]] double seconds(std::size_t region) const { return seconds_[region]; }

 private:
  std::unique_ptr<Executor> pool_;
  std::array<double, kRegions.size()> seconds_{};
  std::size_t next_ = 0;
};

Executor& pool_of(int threads) {
  static std::map<int, std::unique_ptr<Executor>> pools;
  auto& pool = pools[threads];
  if (!pool) pool = make_thread_pool(threads);
  return *pool;
}

double dense_seconds(const FilledShape& shape, int threads) {
  static std::map<std::tuple<int, int, int, int>, double> known;
  double& seconds = known[{shape.context, shape.batch, shape.group, threads}];
  if (seconds == 0) {
    FilledCache& cache = filled_cache(shape);
    seconds = median_seconds([&] { cache.dense(pool_of(threads)); });
  }
  return seconds;
}

void report(benchmark::State& state, const FilledShape& shape, int threads,
            const TimedExecutor& executor, const FilledCache::Work& work) {
  const double limit =
      (work.index_bytes + work.value_mean_bytes) / read_bandwidth(threads) +
      work.row_bytes /
          gather_bandwidth(threads, static_cast<std::size_t>(work.run_bytes) / 64 * 64);
  const auto share = [](double seconds) {
    return benchmark::Counter(seconds, benchmark::Counter::kIsIterationInvariantRate);
  };
  state.counters["vs_dense"] = share(dense_seconds(shape, threads));
  state.counters["of_limit"] = share(limit);
  for (std::size_t i = 0; i < TimedExecutor::kRegions.size(); ++i) {
    state.counters[std::string{TimedExecutor::kRegions[i]} + "_us"] =
        benchmark::Counter(executor.seconds(i) * 1e6, benchmark::Counter::kAvgIterations);
  }
  state.counters["run_rows"] = work.run_bytes / (2 * 2 * FilledCache::kHeadDim);
  state.counters["values"] = work.values / work.clusters;
  state.SetBytesProcessed(
      static_cast<std::int64_t>(work.index_bytes + work.value_mean_bytes + work.row_bytes) *
      state.iterations());
}

/// Arguments: context, budget, threads, batch, group, tokens_per_cluster.
void decode_step(benchmark::State& state) {
  const auto argument = [&](int i) { return static_cast<int>(state.range(i)); };
  const FilledShape shape{argument(0), argument(3), argument(4), argument(5)};
  FilledCache& cache = filled_cache(shape);
  TimedExecutor executor(argument(2));
  cache.step(argument(1));
  for (auto _ : state) {
    executor.begin();
    cache.attend(executor);
  }
  report(state, shape, argument(2), executor, cache.work());
}

/// Short sequences with the automatic choice of dense attention. Arguments: context, threads.
void short_step(benchmark::State& state) {
  FilledShape shape{.context = static_cast<int>(state.range(0)), .dense_threshold = 1.5F};
  const auto threads = static_cast<int>(state.range(1));
  FilledCache& cache = filled_cache(shape);
  cache.step(512);
  for (auto _ : state) cache.attend(pool_of(threads));
  state.counters["vs_dense"] = benchmark::Counter(dense_seconds(shape, threads),
                                                  benchmark::Counter::kIsIterationInvariantRate);
}

void medians(benchmark::internal::Benchmark* bench) {
  bench->Repetitions(kRepeats)->ReportAggregatesOnly()->UseRealTime()->Unit(
      benchmark::kMicrosecond);
}

void steps(benchmark::internal::Benchmark* bench) {
  medians(bench);
  bench->ArgNames({"context", "budget", "threads", "batch", "group", "per_cluster"});
}

BENCHMARK(decode_step)
    ->Name("pipeline/decode_step/cpu/by_context")
    ->Apply(steps)
    ->ArgsProduct({{4096, 8192, 16384, 32768, 131072}, {512}, {1, 2}, {1}, {4}, {8}});
BENCHMARK(decode_step)
    ->Name("pipeline/decode_step/cpu/by_budget")
    ->Apply(steps)
    ->ArgsProduct({{32768}, {256, 1024, 2048, 4096}, {2}, {1}, {4}, {8}});
BENCHMARK(decode_step)
    ->Name("pipeline/decode_step/cpu/by_batch")
    ->Apply(steps)
    ->ArgsProduct({{8192}, {512}, {2}, {4, 16}, {4}, {8}});
BENCHMARK(decode_step)
    ->Name("pipeline/decode_step/cpu/by_group")
    ->Apply(steps)
    ->ArgsProduct({{32768}, {512}, {2}, {1}, {1, 8}, {8}});
BENCHMARK(decode_step)
    ->Name("pipeline/decode_step/cpu/million")
    ->Apply(steps)
    ->ArgsProduct({{1 << 20}, {512}, {2}, {1}, {4}, {8, 16}});
BENCHMARK(short_step)
    ->Name("pipeline/decode_step/cpu/break_even")
    ->Apply(medians)
    ->ArgNames({"context", "threads"})
    ->ArgsProduct({{128, 512, 704, 1024, 1536, 2048}, {1, 2}});

}  // namespace
}  // namespace clusterkv::bench
