// SPDX-License-Identifier: Apache-2.0
#include "kernels/cluster/rules.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

namespace clusterkv::cluster {
namespace {

TEST(NumClusters, IsTheCeilingOfTokensPerCluster) {
  EXPECT_EQ(num_clusters(2048, 8, 4), 256);
  EXPECT_EQ(num_clusters(2049, 8, 4), 257);
  EXPECT_EQ(num_clusters(2047, 8, 4), 256);
  EXPECT_EQ(num_clusters(320, 80, 4), 4);
  EXPECT_EQ(num_clusters(32768, 80, 4), 410);
}

TEST(NumClusters, NeverBelowTheLeastNorAboveTheTokens) {
  EXPECT_EQ(num_clusters(20, 8, 4), 4);
  EXPECT_EQ(num_clusters(3, 8, 4), 3);
  EXPECT_EQ(num_clusters(1, 8, 4), 1);
  EXPECT_EQ(num_clusters(0, 8, 4), 0);
  for (int n = 1; n < 400; ++n) {
    for (const int per : {1, 3, 8, 80}) {
      const int c = num_clusters(n, per, 4);
      EXPECT_LE(c, n);
      EXPECT_EQ(c, std::min(n, std::max(4, static_cast<int>(std::ceil(double(n) / per)))));
    }
  }
  EXPECT_EQ(num_clusters(std::numeric_limits<int>::max(), 1, 1), std::numeric_limits<int>::max());
}

TEST(EvenStart, IsTheFloorAndNeverOverflows) {
  for (int i = 0; i < 7; ++i) EXPECT_EQ(even_start(i, 10, 7), i * 10 / 7);
  EXPECT_EQ(even_start(99999, 1 << 20, 100000),
            static_cast<int>(std::int64_t{99999} * (1 << 20) / 100000));
}

// The published vectors of splitmix64 for seed 1234567.
TEST(Splitmix64, MatchesThePublishedSequence) {
  std::uint64_t state = 1234567;
  EXPECT_EQ(splitmix64(state), 6457827717110365317U);
  EXPECT_EQ(splitmix64(state), 3203168211198807973U);
  EXPECT_EQ(splitmix64(state), 9817491932198370423U);
}

TEST(StartSeed, DependsOnAllFour) {
  std::set<std::uint64_t> seeds;
  for (const std::uint64_t seed : {1U, 2U}) {
    for (const int layer : {0, 1, 2}) {
      for (const int head : {0, 1, 2}) {
        for (const int token : {0, 1, 2, 16}) seeds.insert(start_seed(seed, layer, head, token));
      }
    }
  }
  EXPECT_EQ(seeds.size(), 2U * 3 * 3 * 4);
}

TEST(RandomStarts, AreDistinctTokensForEveryCount) {
  for (const int n : {1, 2, 7, 320}) {
    for (const int c : {1, n / 2 + 1, n}) {
      std::vector<std::int32_t> tokens(static_cast<std::size_t>(n));
      random_starts(start_seed(1, 0, 0, n), n, c, tokens.data());
      const std::set<int> distinct(tokens.begin(), tokens.begin() + c);
      EXPECT_EQ(static_cast<int>(distinct.size()), c);
      EXPECT_GE(*distinct.begin(), 0);
      EXPECT_LT(*distinct.rbegin(), n);
    }
  }
}

TEST(RandomStarts, EveryTokenIsEquallyLikely) {
  constexpr int kTokens = 10;
  constexpr int kDraws = 20000;
  int hits[kTokens] = {};
  for (int i = 0; i < kDraws; ++i) {
    std::int32_t tokens[kTokens];
    random_starts(start_seed(static_cast<std::uint64_t>(i), 0, 0, 0), kTokens, 3, tokens);
    for (int k = 0; k < 3; ++k) ++hits[tokens[k]];
  }
  // Binomial with p = 0.3: five standard deviations are 325.
  for (const int count : hits) EXPECT_NEAR(count, 0.3 * kDraws, 325);
}

// A hand-worked draw: for n = 2 the first output of splitmix64 decides by its top bit.
TEST(RandomStarts, DrawsByTheHighBits) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    std::uint64_t state = seed;
    const int first = static_cast<int>(splitmix64(state) >> 63);
    std::int32_t tokens[2];
    random_starts(seed, 2, 1, tokens);
    EXPECT_EQ(tokens[0], first);
  }
}

TEST(IsBetter, TiesAndNanKeepTheFirst) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  EXPECT_TRUE(is_better(1.0F, 0.0F));
  EXPECT_FALSE(is_better(1.0F, 1.0F));
  EXPECT_FALSE(is_better(kNan, kLowest));
  EXPECT_FALSE(is_better(kNan, kNan));
  EXPECT_FALSE(is_better(0.0F, -0.0F));
}

}  // namespace
}  // namespace clusterkv::cluster
