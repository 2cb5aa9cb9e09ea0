// SPDX-License-Identifier: Apache-2.0
//
// Clustering takes time linear in the tokens of a prompt: a guard against quadratic work, with room
// for a busy machine. The figures are the bench's (bench/cluster/prefill_bench.cpp).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "tests/support/harness.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kChunk = 8192;

/// CPU time of this thread: what others do on the machine does not count.
double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Seconds to store and cluster a prompt of one layer and head with the standard preset.
double seconds_to_cluster(int num_tokens, const std::vector<float>& chunk) {
  CacheConfig config = CacheConfig::standard(small_model(1, 1, 1, 64));
  config.model.kv_dtype = DType::kBF16;
  config.select.dense_layers = 0;
  config.max_sequences = 1;
  config.max_tokens = num_tokens;
  const auto pool = make_thread_pool(1);
  Harness<ClusterKVCache> h(config, {1, kChunk, 0}, {Backend::kCpu, pool.get(), nullptr});
  const SequenceId id = h.cache.add_sequence();
  const double start = thread_seconds();
  for (int done = 0; done < num_tokens; done += kChunk) {
    const bool last = done + kChunk == num_tokens;
    h.begin({{id, kChunk, 0, last ? Phase::kPrefillLast : Phase::kPrefill}});
    h.append(0, chunk, chunk);
  }
  const double seconds = thread_seconds() - start;
  EXPECT_EQ(h.cache.stats().kmeans_tokens, num_tokens - 16) << "all of it was clustered";
  return seconds;
}

/// Least times of 8k, 16k .. 128k tokens. The least of a few runs is what the work itself takes.
class Times {
 public:
  explicit Times(const std::vector<float>& chunk) : chunk_(chunk) {
    for (int i = 0; i < kSizes; ++i) {
      for (int run = 0; run < std::max(1, 4 - i); ++run) measure(i);
    }
  }
  /// By what factor time grows from the size before.
  [[nodiscard]] double growth(int i) const { return seconds_[at(i)] / seconds_[at(i - 1)]; }

  /// Measures again where something in the way made a step look steep.
  void retry(double limit) {
    for (int i = 1; i < kSizes; ++i) {
      if (growth(i) <= limit) continue;
      measure(i);
      measure(i - 1);
    }
  }
  void print() const {
    for (int i = 0; i < kSizes; ++i) {
      std::printf("%6d tokens: %7.3f s, x %.2f\n", kChunk << i, seconds_[at(i)],
                  i > 0 ? growth(i) : 0);
    }
  }
  static constexpr int kSizes = 5;

 private:
  static std::size_t at(int i) { return static_cast<std::size_t>(i); }
  void measure(int i) {
    seconds_[at(i)] = std::min(seconds_[at(i)], seconds_to_cluster(kChunk << i, chunk_));
  }

  const std::vector<float>& chunk_;
  std::vector<double> seconds_ = std::vector<double>(kSizes, 1e9);
};

TEST(LinearTime, DoublingThePromptDoesNotQuadrupleItsClustering) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "time with a sanitizer says nothing";
#endif
  Random random(1);
  const std::vector<float> chunk = random.normals(std::size_t{kChunk} * 64);
  constexpr double kLimit = 3;  // linear: 2, quadratic: 4
  Times times(chunk);
  for (int round = 0; round < 3; ++round) times.retry(kLimit);
  times.print();
  for (int i = 1; i < Times::kSizes; ++i) EXPECT_LE(times.growth(i), kLimit) << "step " << i;
}

}  // namespace
}  // namespace clusterkv::testing
