// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/math.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/support/random.hpp"

namespace clusterkv {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(Exp2Fixed, RelativeErrorIsBelow2e7) {
  double worst = 0;
  for (int i = 1; i < 2530000; ++i) {
    const float x = -126.0F + static_cast<float>(i) * 1e-4F;
    if (x > 127.0F) break;
    const double want = std::exp2(double{x});
    worst = std::max(worst, std::abs(double{exp2_fixed(x)} - want) / want);
  }
  EXPECT_LT(worst, 2e-7);  // the header's promise
}

TEST(Exp2Fixed, IntegersAreExact) {
  for (int n = -125; n <= 127; ++n) {
    EXPECT_EQ(exp2_fixed(static_cast<float>(n)), std::ldexp(1.0F, n)) << n;
  }
}

TEST(Exp2Fixed, SpecialValues) {
  EXPECT_EQ(exp2_fixed(-126.0F), 0.0F);
  EXPECT_EQ(exp2_fixed(-1e30F), 0.0F);
  EXPECT_EQ(exp2_fixed(kMinusInfinity), 0.0F);
  EXPECT_EQ(exp2_fixed(kNan), 0.0F);
  EXPECT_EQ(exp2_fixed(127.5F), 0x1p127F);
  EXPECT_EQ(exp2_fixed(INFINITY), 0x1p127F);
  EXPECT_EQ(exp2_fixed(-0.0F), 1.0F);
}

TEST(Exp2Fixed, NeverDecreasesByMoreThanItsError) {
  float last = 0;
  for (int i = 0; i < 400000; ++i) {
    const float y = exp2_fixed(-20.0F + static_cast<float>(i) * 1e-4F);
    ASSERT_GE(y, last * (1 - 4e-7F));
    last = y;
  }
}

TEST(Log2OnePlusFixed, AbsoluteErrorIsBelow2e7) {
  // From the smallest w that changes 1 + w up to 2^14; beyond, the integer part of the result
  // leaves no room for an absolute 2e-7 in a float.
  double worst = 0;
  for (double w = 1e-9; w < 3.0; w *= 1.00003) {
    const auto x = static_cast<float>(w);
    // 1 + w is rounded first: that alone is half an ulp of 1 + w.
    const double want = std::log2(double{1.0F + x});
    worst = std::max(worst, std::abs(double{log2_1p_fixed(x)} - want));
  }
  EXPECT_LT(worst, 2e-7);
}

TEST(Log2OnePlusFixed, LargeArgumentsAreRightToAnUlp) {
  for (double w = 3.0; w < 9e37; w *= 1.001) {
    const double want = std::log2(1 + double{static_cast<float>(w)});
    ASSERT_NEAR(log2_1p_fixed(static_cast<float>(w)), want, 1.5e-7 * want + 2e-7) << w;
  }
}

TEST(Log2OnePlusFixed, SpecialValues) {
  EXPECT_EQ(log2_1p_fixed(0.0F), 0.0F);
  EXPECT_EQ(log2_1p_fixed(-3.0F), 0.0F);
  EXPECT_EQ(log2_1p_fixed(kNan), 0.0F);
  EXPECT_EQ(log2_1p_fixed(1.0F), 1.0F);
  EXPECT_EQ(log2_1p_fixed(7.0F), 3.0F);
  EXPECT_TRUE(std::isfinite(log2_1p_fixed(INFINITY)));
}

TEST(TanhFixed, RelativeErrorIsBelow3e7) {
  double worst = 0;
  for (double a = 1e-30; a < 100; a *= 1.00001) {
    const auto x = static_cast<float>(a);
    const double want = std::tanh(double{x});
    worst = std::max(worst, std::abs(double{tanh_fixed(x)} - want) / want);
    ASSERT_EQ(tanh_fixed(-x), -tanh_fixed(x));
  }
  EXPECT_LT(worst, 3e-7);  // the header's promise
}

TEST(TanhFixed, SpecialValues) {
  EXPECT_EQ(std::bit_cast<std::uint32_t>(tanh_fixed(-0.0F)), 0x80000000U);
  EXPECT_EQ(tanh_fixed(INFINITY), 1.0F);
  EXPECT_EQ(tanh_fixed(kMinusInfinity), -1.0F);
  EXPECT_EQ(tanh_fixed(1e30F), 1.0F);
  EXPECT_TRUE(std::isnan(tanh_fixed(kNan)));
}

TEST(Softcap, CapsLogitsInUnitsOfLog2) {
  EXPECT_FALSE(Softcap(0.0F).is_on());
  for (const float c : {1e-3F, 30.0F, 1e6F}) {
    const Softcap cap(c);
    EXPECT_TRUE(cap.is_on());
    for (const double natural : {-1e5, -20.0, -1e-3, 0.0, 7.0, 400.0}) {
      const double want = double{c} * std::tanh(natural / double{c}) / std::log(2.0);
      const auto x = static_cast<float>(natural / std::log(2.0));
      EXPECT_NEAR(cap(x), want, 6e-7 * std::abs(want)) << c << " " << natural;
    }
  }
}

TEST(TreeSum, AddsHalvesPairwise) {
  // 1 + 1e8 loses the 1 in a float: only (0 with 2), (1 with 3), then both, gives exactly 2.
  const float partial[4] = {1e8F, 1.0F, -1e8F, 1.0F};
  EXPECT_EQ(tree_sum<4>(partial), 2.0F);
  const float one[1] = {3.0F};
  EXPECT_EQ(tree_sum<1>(one), 3.0F);
}

template <int kDim>
void check_dot() {
  testing::Random random(kDim);
  const std::vector<float> a = random.normals(kDim);
  const std::vector<float> b = random.normals(kDim);
  double want = 0;
  double size = 0;
  float lane[kSumLanes] = {};
  for (std::size_t d = 0; d < kDim; ++d) {
    want += double{a[d]} * double{b[d]};
    size += std::abs(double{a[d]} * double{b[d]});
    lane[d % kSumLanes] += a[d] * b[d];
  }
  // 16 products and 4 tree levels: at most 21 roundings of half an ulp each.
  EXPECT_NEAR(dot_fixed<kDim>(a.data(), b.data()), want, 21 * 0x1p-24 * size);
  EXPECT_EQ(dot_fixed<kDim>(a.data(), b.data()), tree_sum<kSumLanes>(lane));
}

TEST(DotFixed, MatchesReferenceInTheOrderOfItsLanes) {
  check_dot<64>();
  check_dot<80>();
  check_dot<96>();
  check_dot<128>();
  check_dot<256>();
}

}  // namespace
}  // namespace clusterkv
