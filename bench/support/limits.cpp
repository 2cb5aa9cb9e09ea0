// SPDX-License-Identifier: Apache-2.0
#include "bench/support/limits.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "clusterkv/executor.hpp"
#include "clusterkv/memory.hpp"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace clusterkv::bench {
namespace {

/// More than any cache holds.
constexpr std::size_t kBytes = std::size_t{1} << 30;
constexpr std::size_t kLine = 64;
/// As far as hardware would not have begun to fetch by itself.
constexpr std::size_t kPrefetchBytes = 2048;

std::byte* memory() {
  static std::byte* const data = [] {
    auto* made =
        static_cast<std::byte*>(default_memory_resource().allocate(kBytes, kLine, Device{}));
    std::fill_n(made, kBytes, std::byte{1});
    return made;
  }();
  return data;
}

/// run(i) for i in [0, threads), at once.
template <class Fn>
void on_threads(int threads, const Fn& run) {
  static std::map<int, std::unique_ptr<Executor>> pools;
  auto& pool = pools[threads];
  if (!pool) pool = make_thread_pool(threads);
  pool->run(
      threads, [](void* arg, int i) { (*static_cast<const Fn*>(arg))(i); }, const_cast<Fn*>(&run));
}

/// Sums keep reads from being left out.
#ifdef __x86_64__
[[gnu::target_clones("avx2", "default")]]
#endif
std::uint64_t
read(const std::byte* from, std::size_t bytes) {
  const auto* words = reinterpret_cast<const std::uint64_t*>(from);
  std::uint64_t sum[8] = {};
  for (std::size_t i = 0; i + 8 <= bytes / 8; i += 8) {
    for (std::size_t j = 0; j < 8; ++j) sum[j] += words[i + j];
  }
  for (std::size_t j = 1; j < 8; ++j) sum[0] += sum[j];
  return sum[0];
}

template <class T>
void keep(T value) {
  asm volatile("" : : "r"(value) : "memory");
}

constexpr int kSums = 12;  ///< enough to hide the latency of an addition
constexpr std::int64_t kSteps = 2'000'000;

#ifdef __x86_64__
[[gnu::target("avx512f")]] void multiply_512() {
  __m512 sum[kSums];
  for (__m512& s : sum) s = _mm512_setzero_ps();
  for (__m512& s : sum) asm volatile("" : "+v"(s));
  const __m512 x = _mm512_set1_ps(0.999F);
  for (std::int64_t i = 0; i < kSteps; ++i) {
    for (__m512& s : sum) s = _mm512_fmadd_ps(s, x, x);
  }
  for (__m512& s : sum) asm volatile("" : "+v"(s));
}
[[gnu::target("avx2,fma")]] void multiply_256() {
  __m256 sum[kSums];
  for (__m256& s : sum) s = _mm256_setzero_ps();
  for (__m256& s : sum) asm volatile("" : "+x"(s));
  const __m256 x = _mm256_set1_ps(0.999F);
  for (std::int64_t i = 0; i < kSteps; ++i) {
    for (__m256& s : sum) s = _mm256_fmadd_ps(s, x, x);
  }
  for (__m256& s : sum) asm volatile("" : "+x"(s));
}

constexpr int kTileSums = 4;  ///< tiles; enough to hide the latency of a product
constexpr double kTileProducts = 16 * 16 * 32;

[[gnu::target("amx-tile,amx-bf16")]] void multiply_tiles() {
  alignas(64) struct {
    std::uint8_t palette = 1, unused[15] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shape;
  asm volatile("" : : "r"(&shape) : "memory");
  _tile_loadconfig(&shape);
  for (std::int64_t i = 0; i < kSteps; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}
#endif

using Vector [[gnu::vector_size(16)]] = float;
void multiply_128() {
  Vector sum[kSums] = {};
  for (Vector& s : sum) asm volatile("" : "+m"(s));
  const Vector x = Vector{} + 0.999F;
  for (std::int64_t i = 0; i < kSteps; ++i) {
    for (Vector& s : sum) s = s * x + x;
  }
  for (Vector& s : sum) asm volatile("" : "+m"(s));
}

/// The widest multiply-add, and its lanes.
std::pair<void (*)(), int> widest() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") != 0) return {multiply_512, 16};
  if (__builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0) {
    return {multiply_256, 8};
  }
#endif
  return {multiply_128, 4};
}

template <class Key, class Fn>
double once(const Key& key, const Fn& measure) {
  static std::map<Key, double> known;
  const auto found = known.find(key);
  return found != known.end() ? found->second : known[key] = measure();
}

}  // namespace

double median_seconds(const std::function<void()>& run) {
  std::vector<double> seconds(kRepeats);
  for (double& s : seconds) {
    const auto start = std::chrono::steady_clock::now();
    run();
    s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRepeats / 2, seconds.end());
  return seconds[kRepeats / 2];
}

double read_bandwidth(int threads) {
  return once(std::pair{"read", threads}, [&] {
    const std::size_t each = kBytes / static_cast<std::size_t>(threads) / kLine * kLine;
    const double seconds = median_seconds([&] {
      on_threads(threads,
                 [&](int i) { keep(read(memory() + static_cast<std::size_t>(i) * each, each)); });
    });
    return static_cast<double>(each) * threads / seconds;
  });
}

double gather_bandwidth(int threads, std::size_t run_bytes) {
  return once(std::pair{run_bytes, threads}, [&] {
    const std::size_t places = kBytes / run_bytes;
    const std::size_t each = places / 8 / static_cast<std::size_t>(threads);
    std::mt19937_64 random(7);
    std::vector<std::size_t> run(each * static_cast<std::size_t>(threads) + 1);
    for (std::size_t& place : run) place = random() % places;
    const std::size_t ahead = std::min(run_bytes, kPrefetchBytes);
    const double seconds = median_seconds([&] {
      on_threads(threads, [&](int thread) {
        std::uint64_t sum = 0;
        const std::size_t first = static_cast<std::size_t>(thread) * each;
        for (std::size_t i = first; i < first + each; ++i) {
          const std::byte* next = memory() + run[i + 1] * run_bytes;
          for (std::size_t at = 0; at < ahead; at += kLine) __builtin_prefetch(next + at, 0, 2);
          sum += read(memory() + run[i] * run_bytes, run_bytes);
        }
        keep(sum);
      });
    });
    return static_cast<double>(each * run_bytes) * threads / seconds;
  });
}

double fma_rate(int threads) {
  return once(std::pair{"fma", threads}, [&] {
    const auto [multiply, lanes] = widest();
    const double seconds =
        median_seconds([&, run = multiply] { on_threads(threads, [&](int) { run(); }); });
    return 2.0 * kSums * lanes * static_cast<double>(kSteps) * threads / seconds;
  });
}

double tile_rate([[maybe_unused]] int threads) {
#ifdef __x86_64__
  return once(std::pair{"tiles", threads}, [&] {
    const double seconds =
        median_seconds([&] { on_threads(threads, [](int) { multiply_tiles(); }); });
    return 2.0 * kTileSums * kTileProducts * static_cast<double>(kSteps) * threads / seconds;
  });
#else
  return 0;
#endif
}

}  // namespace clusterkv::bench
