// SPDX-License-Identifier: Apache-2.0
#include "kernels/index/rules.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/random.hpp"

namespace clusterkv::index {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Int8Scale, IsALargest127thAndNeverZero) {
  EXPECT_EQ(int8_scale(127.0F), 1.0F);
  EXPECT_EQ(int8_scale(254.0F), 2.0F);
  EXPECT_EQ(int8_scale(0.0F), 1e-12F);
  EXPECT_EQ(int8_scale(1e-20F), 1e-12F);
  EXPECT_EQ(int8_scale(kNan), 1e-12F);
}

TEST(ToInt8, RoundsHalfToEven) {
  for (int i = -126; i <= 125; ++i) {
    const int even = i % 2 == 0 ? i : i + 1;
    EXPECT_EQ(to_int8(static_cast<float>(i) + 0.5F, 1.0F), even) << i;
    EXPECT_EQ(to_int8(static_cast<float>(i), 1.0F), i);
    EXPECT_EQ(to_int8(static_cast<float>(i) + 0.25F, 1.0F), i);
    EXPECT_EQ(to_int8(static_cast<float>(i) + 0.75F, 1.0F), i + 1);
  }
}

TEST(ToInt8, StaysWithin127) {
  EXPECT_EQ(to_int8(127.4F, 1.0F), 127);
  EXPECT_EQ(to_int8(1e30F, 1.0F), 127);
  EXPECT_EQ(to_int8(-1e30F, 1.0F), -127);
  EXPECT_EQ(to_int8(kInfinity, 1.0F), 127);
  EXPECT_EQ(to_int8(-kInfinity, 1.0F), -127);
  EXPECT_EQ(to_int8(-128.0F, 1.0F), -127);
}

TEST(ToInt8, NanIsStoredAsZero) {
  EXPECT_EQ(to_int8(kNan, 1.0F), 0);
  EXPECT_EQ(to_int8(-kNan, 1e-12F), 0);
}

TEST(ToInt8, IsWithinHalfAStep) {
  testing::Random random(1);
  for (int i = 0; i < 100000; ++i) {
    const float largest = std::exp(5.0F * random.normal());
    const float scale = int8_scale(largest);
    const float x = largest * static_cast<float>(random.between(-1000, 1000)) / 1000.0F;
    const double back = double{scale} * to_int8(x, scale);
    ASSERT_LE(std::abs(back - double{x}), 0.5001 * double{scale});
  }
}

TEST(BlocksOf, IsTheCeiling) {
  EXPECT_EQ(blocks_of(0, 64), 0);
  EXPECT_EQ(blocks_of(1, 64), 1);
  EXPECT_EQ(blocks_of(64, 64), 1);
  EXPECT_EQ(blocks_of(65, 64), 2);
  EXPECT_EQ(blocks_of(8192, 64), 128);
}

}  // namespace
}  // namespace clusterkv::index
