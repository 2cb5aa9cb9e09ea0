// SPDX-License-Identifier: Apache-2.0
//
// More of simd.hpp: choices lane by lane, roundings, and sums of the lanes of integers. As simd.hpp, and no
// other file, it names instructions.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/common/cpu/simd.hpp"

namespace clusterkv::simd {
inline namespace CLUSTERKV_ISA {

/// a where x > 0, else b.
CLUSTERKV_SIMD Floats where_positive(const Floats& x, const Floats& a, const Floats& b) {
  Floats chosen;
  for (int i = 0; i < kParts; ++i) {
    chosen.part[i] = x.part[i] > 0.0F ? a.part[i] : b.part[i];
  }
  return chosen;
}

/// Without the signs.
CLUSTERKV_SIMD Floats magnitude(const Floats& v) {
  using Bits = Vector<std::uint32_t, kPartLanes>;
  Floats positive;
  for (int i = 0; i < kParts; ++i) {
    positive.part[i] = std::bit_cast<Part>(std::bit_cast<Bits>(v.part[i]) & 0x7fffffffU);
  }
  return positive;
}

/// v where x is a number, else 0.
CLUSTERKV_SIMD Floats zero_if_nan(const Floats& x, const Floats& v) {
  Floats chosen;
  for (int i = 0; i < kParts; ++i) chosen.part[i] = x.part[i] == x.part[i] ? v.part[i] : Part{};
  return chosen;
}

/// A bit for each lane where a >= b.
CLUSTERKV_SIMD unsigned at_least(const Floats& a, const Floats& b) {
  unsigned bits = 0;
  for (int i = 0; i < kParts; ++i) {
#if defined(__AVX512F__)
    bits |= _mm512_cmp_ps_mask(a.part[i], b.part[i], _CMP_GE_OQ);
#elif defined(__AVX2__)
    const __m256 holds = _mm256_cmp_ps(a.part[i], b.part[i], _CMP_GE_OQ);
    bits |= static_cast<unsigned>(_mm256_movemask_ps(holds)) << i * kPartLanes;
#else
    for (int lane = 0; lane < kPartLanes; ++lane) {
      bits |= static_cast<unsigned>(a.part[i][lane] >= b.part[i][lane]) << (i * kPartLanes + lane);
    }
#endif
  }
  return bits;
}

/// v where there is a bit, else 0.
CLUSTERKV_SIMD Floats only(unsigned bits, const Floats& v) {
#if defined(__AVX512F__)
  return {_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), v.part[0])};
#else
  Floats chosen;
  for (int i = 0; i < kParts; ++i) {
    IntPart bit;
    for (int lane = 0; lane < kPartLanes; ++lane) bit[lane] = 1 << (i * kPartLanes + lane);
    const IntPart has = (IntPart{} + static_cast<std::int32_t>(bits)) & bit;
    chosen.part[i] = has != 0 ? v.part[i] : Part{};
  }
  return chosen;
#endif
}

/// The lanes where there is a bit, side by side. 16 places are written.
CLUSTERKV_SIMD void store_packed(unsigned bits, const Floats& v, float* to) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), v.part[0]));
#else
  float lane[kLanes];
  store(v, lane);
  for (; bits != 0; bits &= bits - 1) *to++ = lane[std::countr_zero(bits)];
#endif
}

/// 16 numbers as 16-bit integers, half to even. Their magnitude is below 2^15.
CLUSTERKV_SIMD void store_rounded(const Floats& v, std::int16_t* to) {
  // 1.5 * 2^23: what is added to it is in the low bits, and so rounded to an integer.
  const Floats shifted = v + broadcast(12582912.0F);
  std::uint32_t bits[kLanes];
  store(shifted, bits);
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<std::int16_t>(bits[i]);
}

/// from[i + 1] - from[i], 0 <= i < 16.
CLUSTERKV_SIMD Floats differences(const std::uint32_t* from) {
  Floats v;
  for (int i = 0; i < kParts; ++i) {
    IntPart low, high;
    std::memcpy(&low, from + i * kPartLanes, sizeof low);
    std::memcpy(&high, from + i * kPartLanes + 1, sizeof high);
    v.part[i] = __builtin_convertvector(high - low, Part);
  }
  return v;
}

// Sums of all lanes of kSums registers come in two steps, so that few registers wait: kJoin of them joined in
// one register, those in a vector in their order.
#if defined(__AVX512F__)
inline constexpr int kJoin = 4, kSums = 16;
#elif defined(__AVX2__)
inline constexpr int kJoin = 2, kSums = 8;
#else
inline constexpr int kJoin = 2, kSums = 4;
#endif
using IntSums = Vector<std::int32_t, kSums>;
using FloatSums = Vector<float, kSums>;

#if defined(__AVX512F__)
/// Four sums of each, side by side.
CLUSTERKV_SIMD IntPart join(const IntPart (&v)[4]) {
  __m512i half[2];
  for (int i = 0; i < 2; ++i) {
    const auto a = reinterpret_cast<__m512i>(v[2 * i]);
    const auto b = reinterpret_cast<__m512i>(v[2 * i + 1]);
    half[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
  }
  return reinterpret_cast<IntPart>(_mm512_add_epi32(_mm512_shuffle_i32x4(half[0], half[1], 0x88),
                                                    _mm512_shuffle_i32x4(half[0], half[1], 0xdd)));
}
CLUSTERKV_SIMD __m512i join_pairs(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}
CLUSTERKV_SIMD IntSums lane_sums(const IntPart (&v)[4]) {
  const auto whole = [&](int i) { return reinterpret_cast<__m512i>(v[i]); };
  const __m512 ab = _mm512_castsi512_ps(join_pairs(whole(0), whole(1)));
  const __m512 cd = _mm512_castsi512_ps(join_pairs(whole(2), whole(3)));
  const __m512i apart = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(ab, cd, 0x88)),
                                         _mm512_castps_si512(_mm512_shuffle_ps(ab, cd, 0xdd)));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return reinterpret_cast<IntSums>(_mm512_permutexvar_epi32(order, apart));
}
#elif defined(__AVX2__)
/// Four sums of each, side by side.
CLUSTERKV_SIMD IntPart join(const IntPart (&v)[2]) {
  const auto a = reinterpret_cast<__m256i>(v[0]);
  const auto b = reinterpret_cast<__m256i>(v[1]);
  return reinterpret_cast<IntPart>(
      _mm256_add_epi32(_mm256_blend_epi32(a, b, 0xf0), _mm256_permute2x128_si256(a, b, 0x21)));
}
CLUSTERKV_SIMD __m256i join_pairs(IntPart a, IntPart b) {
  const auto x = reinterpret_cast<__m256i>(a);
  const auto y = reinterpret_cast<__m256i>(b);
  const __m256i crossed =
      _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y), 0x4e));
  return _mm256_add_epi32(_mm256_blend_epi32(x, y, 0xcc), crossed);
}
CLUSTERKV_SIMD IntSums lane_sums(const IntPart (&v)[4]) {
  const __m256i apart = _mm256_hadd_epi32(join_pairs(v[0], v[1]), join_pairs(v[2], v[3]));
  return reinterpret_cast<IntSums>(
      _mm256_permutevar8x32_epi32(apart, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}
#else
/// Two sums of each, side by side.
CLUSTERKV_SIMD IntPart join(const IntPart (&v)[2]) {
  return __builtin_shufflevector(v[0], v[1], 0, 1, 4, 5) +
         __builtin_shufflevector(v[0], v[1], 2, 3, 6, 7);
}
CLUSTERKV_SIMD IntSums lane_sums(const IntPart (&v)[2]) {
  return __builtin_shufflevector(v[0], v[1], 0, 2, 4, 6) +
         __builtin_shufflevector(v[0], v[1], 1, 3, 5, 7);
}
#endif

}  // namespace CLUSTERKV_ISA
}  // namespace clusterkv::simd
