// SPDX-License-Identifier: Apache-2.0
//
// Random lives of random caches against the naive one, until every value of every switch was used.
// A failure prints the seed of its episode and the fewest operations that show it.
//   CLUSTERKV_MODEL_SEED  runs that episode alone
//   CLUSTERKV_MODEL_OPS   operations to run at least
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "tests/pipeline/model_episode.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kEpisodeOperations = 250;

int target_operations() {
  if (const char* text = std::getenv("CLUSTERKV_MODEL_OPS")) return std::atoi(text);
  if (runs_on_cuda()) return 2000;  // on the executor
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return 2000;
#else
  return 30000;
#endif
}

Tally run_episode(std::uint64_t seed, int max_operations, Coverage& coverage) {
  Episode episode(seed, max_operations);
  const Tally tally = episode.run();
  coverage.add(episode.coverage);
  return tally;
}

/// The fewest operations after which the episode has failed.
int shrink(std::uint64_t seed, int failing) {
  Coverage unused;
  int passing = 0;
  while (failing - passing > 1) {
    const int middle = (failing + passing) / 2;
    (run_episode(seed, middle, unused).failure.empty() ? passing : failing) = middle;
  }
  return failing;
}

TEST(ModelBased, AgreesWithTheNaiveCache) {
  const char* one = std::getenv("CLUSTERKV_MODEL_SEED");
  const std::uint64_t first = one != nullptr ? std::strtoull(one, nullptr, 10) : 1000;
  Coverage coverage;
  Tally total;
  std::uint64_t seed = first;
  // Not all switches are for CUDA, and the executor is slow.
  const auto covers = [&] { return runs_on_cuda() || coverage.is_complete(); };
  while (total.operations < target_operations() || !covers()) {
    const bool is_long = seed - first > 200 && total.operations >= target_operations();
    ASSERT_FALSE(is_long) << "never drawn: " << coverage.missing();
    const Tally tally = run_episode(seed, kEpisodeOperations, coverage);
    ASSERT_EQ(tally.failure, "") << "CLUSTERKV_MODEL_SEED=" << seed << " shows it after "
                                 << shrink(seed, tally.operations + 1) << " operations";
    total.operations += tally.operations;
    total.heads += tally.heads;
    total.choices += tally.choices;
    total.doubtful += tally.doubtful;
    total.near_ties += tally.near_ties;
    ++seed;
    if (one != nullptr) return;
  }
  std::printf("%llu episodes, %d operations: %d choices (%d near ties), %d outputs (%d left out)\n",
              static_cast<unsigned long long>(seed - first), total.operations, total.choices,
              total.near_ties, total.heads, total.doubtful);
  EXPECT_LE(total.doubtful, total.heads / 10);
  EXPECT_LE(total.near_ties, total.choices / 100);
}

}  // namespace
}  // namespace clusterkv::testing
