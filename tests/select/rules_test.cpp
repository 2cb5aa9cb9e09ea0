// SPDX-License-Identifier: Apache-2.0
#include "kernels/select/rules.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/random.hpp"

namespace clusterkv::select {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(QuantiseQuery, RoundsHalfToEvenWithinItsRange) {
  EXPECT_EQ(quantise_query(2.5F, 1.0F), 2);
  EXPECT_EQ(quantise_query(3.5F, 1.0F), 4);
  EXPECT_EQ(quantise_query(-2.5F, 1.0F), -2);
  EXPECT_EQ(quantise_query(40000.0F, 1.0F), 32512);
  EXPECT_EQ(quantise_query(-kInfinity, 1.0F), -32512);
  EXPECT_EQ(quantise_query(kNan, 1.0F), 0);
  EXPECT_EQ(quantise_query(kInfinity, 0.0F), 0);  // inf * 0
}

TEST(QuantiseQuery, BothPlanesFitInt8) {
  for (int q = -32512; q <= 32512; ++q) {
    const int q16 = quantise_query(static_cast<float>(q), 1.0F);
    ASSERT_EQ(q16, q);
    const int high = (q16 + 128) >> 8;
    const int low = q16 - 256 * high;
    ASSERT_LE(std::abs(high), 127);
    ASSERT_GE(low, -128);
    ASSERT_LE(low, 127);
  }
}

TEST(SpreadWeight, IsTheProduct) {
  EXPECT_EQ(spread_weight(0.5F, 3.0F), 1.5F);
  EXPECT_EQ(spread_weight(0.0F, 3.0F), 0.0F);
}

TEST(Score, AddsTheLogarithmOfOnePlusTheSpread) {
  EXPECT_EQ(score(2.0F, 0.0F), 2.0F);
  EXPECT_NEAR(score(2.0F, 3.0F), 4.0F, 1e-6);
  EXPECT_EQ(score(2.0F, kNan), 2.0F);
}

TEST(SoftmaxFactor, DividesByAPositiveSumOnly) {
  EXPECT_EQ(softmax_factor(3.0F, 5.0F, 2.0F), 0.125F);
  EXPECT_EQ(softmax_factor(kMinusInfinity, 5.0F, 2.0F), 0.0F);
  EXPECT_EQ(softmax_factor(0.0F, 0.0F, 0.0F), 0.0F);
  EXPECT_EQ(softmax_factor(kMinusInfinity, kMinusInfinity, 0.0F), 0.0F);
  EXPECT_EQ(softmax_factor(kNan, kNan, kNan), 0.0F);
}

TEST(VoteKey, KeepsTheOrderAndPutsNanLast) {
  testing::Random random(2);
  for (int i = 0; i < 100000; ++i) {
    const float a = std::exp(20.0F * random.normal());
    const float b = std::exp(20.0F * random.normal());
    ASSERT_EQ(vote_key(a) < vote_key(b), a < b);
  }
  EXPECT_EQ(vote_key(0.0F), vote_key(-0.0F));
  EXPECT_EQ(vote_key(kNan), 0U);
  EXPECT_EQ(vote_key(-1.0F), 0U);
  EXPECT_GT(vote_key(std::numeric_limits<float>::denorm_min()), 0U);
}

TEST(ScoreKey, KeepsTheOrderOfAllSignsAndPutsNanLast) {
  const float ascending[] = {-kInfinity, -3e38F, -1.0F, -1e-40F, 1e-40F, 1.0F, 3e38F, kInfinity};
  for (int i = 0; i + 1 < 8; ++i) EXPECT_LT(score_key(ascending[i]), score_key(ascending[i + 1]));
  testing::Random random(3);
  for (int i = 0; i < 100000; ++i) {
    const float a = random.normal();
    const float b = random.normal();
    ASSERT_EQ(score_key(a) < score_key(b), a < b);
  }
  EXPECT_LT(score_key(kNan), score_key(-kInfinity));
  EXPECT_LT(score_key(-kNan), score_key(-kInfinity));
}

TEST(ScoreKey, ZeroTiesWithMinusZero) {
  EXPECT_EQ(score_key(0.0F), score_key(-0.0F));
}

TEST(Passes, CoverAllBitsOnce) {
  std::uint64_t seen = 0;
  for (int pass = 0; pass < 3; ++pass) {
    EXPECT_LE(1 << pass_bits(pass), kPassBins);
    const std::uint64_t mask = ((std::uint64_t{1} << pass_bits(pass)) - 1) << pass_shift(pass);
    EXPECT_EQ(seen & mask, 0U);
    seen |= mask;
  }
  EXPECT_EQ(seen, 0xFFFFFFFFU);
}

TEST(Trim, NeverTakesMoreThanIsLeftOrThere) {
  EXPECT_EQ(trim(5, 9), 5);
  EXPECT_EQ(trim(9, 5), 5);
  EXPECT_EQ(trim(4, 0), 0);
}

TEST(IsDense, UpToTheThresholdTimesTheBudget) {
  EXPECT_TRUE(is_dense(768, 700, 512, 1.5F));
  EXPECT_FALSE(is_dense(769, 700, 512, 1.5F));
  EXPECT_TRUE(is_dense(100000, 0, 512, 1.5F));
  EXPECT_FALSE(is_dense(1, 1, 512, 0.0F));
  EXPECT_FALSE(is_dense(std::int64_t{1} << 40, 1, std::numeric_limits<int>::max(), 1.5F));
}

}  // namespace
}  // namespace clusterkv::select
