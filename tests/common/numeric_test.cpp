// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/numeric.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/reference/numeric.hpp"
#include "tests/support/random.hpp"

namespace clusterkv {
namespace {

using reference::decode;
using reference::encode;
using reference::kBF16Format;
using reference::kF16Format;
using reference::SmallFloat;

struct Codec {
  const char* name;
  SmallFloat format;
  float (*widen)(std::uint16_t);
  std::uint16_t (*round)(float);
};
const Codec kCodecs[] = {{"f16", kF16Format, f16_to_float, float_to_f16},
                         {"bf16", kBF16Format, bf16_to_float, float_to_bf16}};

class Numeric : public ::testing::TestWithParam<Codec> {};

bool same(float got, double want) {
  if (std::isnan(want)) return std::isnan(got);
  return double{got} == want && std::signbit(got) == std::signbit(want);
}

/// Whether `got` stands for `value` as the reference rounds it; any NaN will do for NaN.
bool rounds(const Codec& codec, float value) {
  const std::uint16_t got = codec.round(value);
  if (std::isnan(value)) return std::isnan(decode(codec.format, got));
  return got == encode(codec.format, double{value});
}

TEST_P(Numeric, WidensAllPatternsExactly) {
  for (int bits = 0; bits < 65536; ++bits) {
    const auto code = static_cast<std::uint16_t>(bits);
    ASSERT_TRUE(same(GetParam().widen(code), decode(GetParam().format, code))) << bits;
  }
}

TEST_P(Numeric, AllPatternsSurviveTheRoundTrip) {
  for (int bits = 0; bits < 65536; ++bits) {
    const auto code = static_cast<std::uint16_t>(bits);
    const float value = GetParam().widen(code);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(GetParam().widen(GetParam().round(value)))) << bits;
    } else {
      ASSERT_EQ(GetParam().round(value), code);
    }
  }
}

// For every pair of neighbours: the midpoint goes to the even one, the floats beside it do not tie.
TEST_P(Numeric, RoundsHalfToEvenBetweenAllNeighbours) {
  const Codec& codec = GetParam();
  for (int bits = 0; bits < 65535; ++bits) {
    const auto code = static_cast<std::uint16_t>(bits);
    const double a = decode(codec.format, code);
    const double b = decode(codec.format, static_cast<std::uint16_t>(code + 1));
    if (!std::isfinite(a) || !std::isfinite(b)) continue;
    const auto middle = static_cast<float>((a + b) / 2);
    ASSERT_EQ(codec.round(middle), code + (code & 1)) << bits;
    for (const float towards : {-INFINITY, INFINITY}) {
      ASSERT_TRUE(rounds(codec, std::nextafter(middle, towards))) << bits;
    }
  }
}

TEST_P(Numeric, RoundsRandomFloatsAsTheReference) {
  testing::Random random(11);
  for (int i = 0; i < 300000; ++i) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
    ASSERT_TRUE(rounds(GetParam(), value)) << value;
  }
}

TEST_P(Numeric, OverflowsToInfinityFromHalfAStepAboveTheLargest) {
  const Codec& codec = GetParam();
  const int infinity = ((1 << codec.format.exponent_bits) - 1) << codec.format.mantissa_bits;
  const double largest = decode(codec.format, static_cast<std::uint16_t>(infinity - 1));
  const double step = largest - decode(codec.format, static_cast<std::uint16_t>(infinity - 2));
  const auto edge = static_cast<float>(largest + step / 2);
  EXPECT_EQ(codec.round(edge), infinity);
  EXPECT_EQ(codec.round(std::nextafter(edge, 0.0F)), infinity - 1);
  EXPECT_EQ(codec.round(INFINITY), infinity);
  EXPECT_EQ(codec.round(-INFINITY), infinity | 0x8000);
}

TEST(Elements, LoadAndStoreUnalignedRows) {
  std::vector<std::byte> bytes(1 + 3 * 2 + 1, std::byte{0xEE});
  const float values[] = {1.0F, -2.5F, 0.0F};
  store_elements<DType::kF16>(values, 3, bytes.data() + 1);
  float back[3];
  load_elements<DType::kF16>(bytes.data() + 1, 3, back);
  EXPECT_EQ(back[1], -2.5F);
  EXPECT_EQ(bytes.front(), std::byte{0xEE});
  EXPECT_EQ(bytes.back(), std::byte{0xEE});
}

INSTANTIATE_TEST_SUITE_P(Formats, Numeric, ::testing::ValuesIn(kCodecs),
                         [](const auto& codec) { return codec.param.name; });

}  // namespace
}  // namespace clusterkv
