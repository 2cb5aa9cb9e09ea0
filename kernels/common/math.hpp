// SPDX-License-Identifier: Apache-2.0
//
// Functions of the scores, as fixed sequences of single operations: every backend and instruction
// set gives the same bits. No fused multiply-add anywhere (docs/decisions/001), so translation units
// that include this are compiled with -ffp-contract=off.
//
// Scores are kept in units of log2.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "kernels/common/host_device.hpp"
#include "kernels/common/tuning.hpp"

namespace clusterkv {

inline constexpr float kLog2E = 1.4426950408889634F;
inline constexpr float kLn2 = 0.6931471805599453F;
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// ln2^k / k!, k = 7 .. 0
inline constexpr int kExp2Terms = 8;
CLUSTERKV_HD constexpr float exp2_term(int i) {
  constexpr float kTerms[kExp2Terms] = {1.5252734e-5F, 1.5403530e-4F, 1.3333558e-3F, 9.6181291e-3F,
                                        5.5504109e-2F, 2.4022651e-1F, 6.9314718e-1F, 1.0F};
  return kTerms[i];
}
/// 2 / (k ln2), k = 9, 7, 5, 3, 1
inline constexpr int kLog2Terms = 5;
CLUSTERKV_HD constexpr float log2_term(int i) {
  constexpr float kTerms[kLog2Terms] = {0.32059890F, 0.41219858F, 0.57707802F, 0.96179669F,
                                        2.8853900F};
  return kTerms[i];
}

/// (tanh x - x) / x^3 as a polynomial in x^2, highest power first, for |x| < kTanhSmall (Cephes).
inline constexpr int kTanhTerms = 5;
inline constexpr float kTanhSmall = 0.625F;
CLUSTERKV_HD constexpr float tanh_term(int i) {
  constexpr float kTerms[kTanhTerms] = {-5.70498873e-3F, 2.06390888e-2F, -5.37397156e-2F,
                                        1.33314422e-1F, -3.33332819e-1F};
  return kTerms[i];
}

/// 2^x, relative error < 2e-7. At or below -126, and for NaN: 0. Above 127: 2^127.
CLUSTERKV_HD inline float exp2_fixed(float x) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float low = x > -126.0F ? x : -126.0F;
  const float clamped = low < 127.0F ? low : 127.0F;
  const float shifted = clamped + kRound;
  const float f = clamped - (shifted - kRound);  // [-0.5, 0.5]
  float p = exp2_term(0);
  for (int i = 1; i < kExp2Terms; ++i) p = p * f + exp2_term(i);
  const std::uint32_t exponent = (std::bit_cast<std::uint32_t>(shifted) + 127U) << 23;
  return x > -126.0F ? p * std::bit_cast<float>(exponent) : 0.0F;
}

/// log2(1 + w) for w >= 0, absolute error < 2e-7. NaN and negative w count as 0.
CLUSTERKV_HD inline float log2_1p_fixed(float w) {
  const float y = 1.0F + (w > 0.0F ? (w < 1e38F ? w : 1e38F) : 0.0F);
  const auto bits = std::bit_cast<std::uint32_t>(y);
  // Splits y = 2^n * m with m in [sqrt(1/2), sqrt(2)).
  const std::uint32_t n = (bits - 0x3f3504f3U) >> 23;
  const float m = std::bit_cast<float>(bits - (n << 23));
  const float s = (m - 1.0F) / (m + 1.0F);
  const float s2 = s * s;
  float p = log2_term(0);
  for (int i = 1; i < kLog2Terms; ++i) p = p * s2 + log2_term(i);
  return p * s + static_cast<float>(static_cast<std::int32_t>(n));
}

/// tanh x, relative error < 3e-7. NaN stays NaN.
CLUSTERKV_HD inline float tanh_fixed(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const float a = std::bit_cast<float>(bits & 0x7fffffffU);
  const float s = a * a;
  float p = tanh_term(0);
  for (int i = 1; i < kTanhTerms; ++i) p = p * s + tanh_term(i);
  const float small = p * s * a + a;
  const float large = 1.0F - 2.0F / (exp2_fixed(a * (2.0F * kLog2E)) + 1.0F);
  const float magnitude = a >= kTanhSmall ? large : small;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | (bits & 0x80000000U));
}

/// A model's soft cap c: f(x) = c tanh(x / c) of a logit x. As logits, in units of log2.
struct Softcap {
  float cap;      ///< 0: none
  float inverse;  ///< 1 / cap
  float bend;     ///< 2 / c, c in natural logits

  /// \param natural  c; 0: none
  CLUSTERKV_HD explicit Softcap(float natural)
      : cap(natural * kLog2E),
        inverse(natural > 0.0F ? 1.0F / cap : 0.0F),
        bend(2.0F * kLog2E * inverse) {}
  [[nodiscard]] CLUSTERKV_HD bool is_on() const { return cap > 0.0F; }
  [[nodiscard]] CLUSTERKV_HD float operator()(float x) const {
    return cap * tanh_fixed(x * inverse);
  }
};

/// Sum of kCount partial sums in the fixed order of a tree; kCount a power of two.
template <int kCount>
CLUSTERKV_HD inline float tree_sum(const float* partial) {
  static_assert((kCount & (kCount - 1)) == 0);
  float sum[kCount];
  for (int i = 0; i < kCount; ++i) sum[i] = partial[i];
  for (int half = kCount / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sum[i] = sum[i] + sum[i + half];
  }
  return sum[0];
}

/// Dot product over kDim elements: kSumLanes partial sums, then a tree.
template <int kDim>
CLUSTERKV_HD inline float dot_fixed(const float* a, const float* b) {
  static_assert(kDim % kSumLanes == 0);
  float lane[kSumLanes] = {};
  for (int d = 0; d < kDim; d += kSumLanes) {
    for (int i = 0; i < kSumLanes; ++i) lane[i] = lane[i] + a[d + i] * b[d + i];
  }
  return tree_sum<kSumLanes>(lane);
}

}  // namespace clusterkv
