// SPDX-License-Identifier: Apache-2.0
//
// Vectors of 16 lanes for the instruction set that a translation unit is compiled for: one register,
// two or four. As sums over head_dim have 16 partial sums (kSumLanes), every instruction set gives the
// same bits, except where `fma` stands: it rounds once where there is an instruction for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/common/cpu/isa.hpp"
#include "kernels/common/numeric.hpp"
#include "kernels/common/tuning.hpp"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define CLUSTERKV_SIMD [[gnu::always_inline]] inline

namespace clusterkv::simd {
inline namespace CLUSTERKV_ISA {

namespace isa_named {
inline constexpr Isa portable = Isa::kPortable, avx2 = Isa::kAvx2, avx512 = Isa::kAvx512,
                     avx512bf16 = Isa::kAvx512Bf16;
}
/// The instruction set of this translation unit.
inline constexpr Isa kIsa = isa_named::CLUSTERKV_ISA;

#if defined(__AVX512F__)
inline constexpr int kPartLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kPartLanes = 8;
#else
inline constexpr int kPartLanes = 4;
#endif
inline constexpr int kLanes = kSumLanes;
inline constexpr int kParts = kLanes / kPartLanes;

/// Sums that stay in registers in an inner loop beside what is added to them.
inline constexpr int kAccumulators = kPartLanes == 16 ? 16 : 4;

template <class T, int kCount>
using Vector [[gnu::vector_size(sizeof(T) * kCount)]] = T;
using Part = Vector<float, kPartLanes>;
using IntPart = Vector<std::int32_t, kPartLanes>;
using Quad = Vector<float, 4>;
using IntQuad = Vector<std::int32_t, 4>;

struct Floats {
  Part part[kParts];
};
struct Ints {
  IntPart part[kParts];
};

CLUSTERKV_SIMD Floats broadcast(float x) {
  Floats v;
  for (Part& part : v.part) part = Part{} + x;
  return v;
}

CLUSTERKV_SIMD Floats load(const float* from) {
  Floats v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

CLUSTERKV_SIMD void store(const Floats& v, float* to) {
  std::memcpy(to, &v, sizeof v);
}

CLUSTERKV_SIMD Floats operator+(const Floats& a, const Floats& b) {
  Floats sum;
  for (int i = 0; i < kParts; ++i) sum.part[i] = a.part[i] + b.part[i];
  return sum;
}

CLUSTERKV_SIMD Floats operator*(const Floats& a, const Floats& b) {
  Floats product;
  for (int i = 0; i < kParts; ++i) product.part[i] = a.part[i] * b.part[i];
  return product;
}

/// a * b + c, rounded once except on the portable path.
CLUSTERKV_SIMD Floats fma(const Floats& a, const Floats& b, const Floats& c) {
#if defined(__AVX512F__)
  return {_mm512_fmadd_ps(a.part[0], b.part[0], c.part[0])};
#elif defined(__FMA__)
  return {_mm256_fmadd_ps(a.part[0], b.part[0], c.part[0]),
          _mm256_fmadd_ps(a.part[1], b.part[1], c.part[1])};
#else
  return a * b + c;
#endif
}

/// 16 stored elements of a row.
template <DType kDType>
CLUSTERKV_SIMD Floats load_row(const std::byte* from) {
  if constexpr (kDType == DType::kF32) {
    Floats v;
    std::memcpy(&v, from, sizeof v);
    return v;
#if defined(__AVX512F__)
  } else if constexpr (kDType == DType::kBF16) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  } else {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
#elif defined(__AVX2__)
  } else {
    Floats v;
    for (int i = 0; i < kParts; ++i) {
      const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i);
      v.part[i] = kDType == DType::kBF16
                      ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))
                      : _mm256_cvtph_ps(bits);
    }
    return v;
#else
  } else {
    float wide[kLanes];
    load_elements<kDType>(from, kLanes, wide);
    return load(wide);
#endif
  }
}

/// Partial sums i, i + 4, i + 8 and i + 12 of a fixed-order sum, added as tree_sum() does.
CLUSTERKV_SIMD Quad fold(const Floats& v) {
#if defined(__AVX512F__)
  const __m256 half = _mm512_castps512_ps256(v.part[0]) + _mm512_extractf32x8_ps(v.part[0], 1);
  return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
#elif defined(__AVX2__)
  const __m256 half = v.part[0] + v.part[1];
  return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
#else
  return (v.part[0] + v.part[2]) + (v.part[1] + v.part[3]);
#endif
}
CLUSTERKV_SIMD IntQuad fold(const Ints& v) {
#if defined(__AVX512F__)
  const auto whole = reinterpret_cast<__m512i>(v.part[0]);
  const __m256i half =
      _mm256_add_epi32(_mm512_castsi512_si256(whole), _mm512_extracti64x4_epi64(whole, 1));
  return reinterpret_cast<IntQuad>(
      _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
#elif defined(__AVX2__)
  const auto half = reinterpret_cast<__m256i>(v.part[0] + v.part[1]);
  return reinterpret_cast<IntQuad>(
      _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
#else
  return (v.part[0] + v.part[2]) + (v.part[1] + v.part[3]);
#endif
}

/// Four folded sums finished: lane i is the tree_sum() of what was folded to v[i].
template <class Q>
CLUSTERKV_SIMD Q finish(const Q& a, const Q& b, const Q& c, const Q& d) {
  const Q ab =
      __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
  const Q cd =
      __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
  return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
}

// ------------------------------------------------------------------------- products of bf16 rows
#if defined(__AVX512BF16__)
inline constexpr bool kHasPairDot = true;
inline constexpr int kPairLanes = 32;

using Pairs = __m512bh;

/// 32 elements of a bf16 row, or the last 16 of one and zeros.
CLUSTERKV_SIMD Pairs load_pairs(const std::byte* from) {
  return reinterpret_cast<Pairs>(_mm512_loadu_si512(from));
}
CLUSTERKV_SIMD Pairs load_half_pairs(const std::byte* from) {
  return reinterpret_cast<Pairs>(_mm512_maskz_loadu_epi16(0xffffU, from));
}
/// Adds products of neighbours to 16 sums.
CLUSTERKV_SIMD Floats dot_pairs(const Floats& sum, Pairs a, Pairs b) {
  return {_mm512_dpbf16_ps(sum.part[0], a, b)};
}
#else
inline constexpr bool kHasPairDot = false;
#endif

CLUSTERKV_SIMD void prefetch(const std::byte* line) {
  __builtin_prefetch(line, 0, 3);
}

}  // namespace CLUSTERKV_ISA
}  // namespace clusterkv::simd
