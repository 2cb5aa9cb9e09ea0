// SPDX-License-Identifier: Apache-2.0
//
// Vectors of 16 lanes for the instruction set that a translation unit is compiled for: one register,
// two or four. As sums over head_dim have 16 partial sums (kSumLanes), every instruction set gives the
// same bits, except where `fma` stands: it rounds once where there is an instruction for it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/common/cpu/isa.hpp"
#include "kernels/common/math.hpp"
#include "kernels/common/numeric.hpp"
#include "kernels/common/tuning.hpp"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define CLUSTERKV_SIMD [[gnu::always_inline]] inline

namespace clusterkv::simd {
inline namespace CLUSTERKV_ISA {

namespace isa_named {  // as CLUSTERKV_ISA spells them
// NOLINTBEGIN(readability-identifier-naming)
inline constexpr Isa portable = Isa::kPortable, avx2 = Isa::kAvx2, avx512 = Isa::kAvx512,
                     avx512vnni = Isa::kAvx512Vnni, amx = Isa::kAmx;
// NOLINTEND(readability-identifier-naming)
}  // namespace isa_named
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
inline constexpr int kPartBytes = kPartLanes * static_cast<int>(sizeof(float));

/// Vectors that stay in registers in an inner loop beside what is added to them.
inline constexpr int kAccumulators = kPartLanes == 16 ? 16 : (kPartLanes == 8 ? 4 : 2);

template <class T, int kCount>
using Vector [[gnu::vector_size(sizeof(T) * kCount)]] = T;
using Part = Vector<float, kPartLanes>;
using IntPart = Vector<std::int32_t, kPartLanes>;
using Quad = Vector<float, 4>;

struct Floats {
  Part part[kParts];
};
struct Ints {
  IntPart part[kParts];
};

CLUSTERKV_SIMD Floats broadcast(float x) {
  Floats v;
  for (Part& part : v.part) {
#if defined(__AVX512F__)
    part = _mm512_set1_ps(x);
#elif defined(__AVX2__)
    part = _mm256_set1_ps(x);
#else
    part = Part{x, x, x, x};
#endif
  }
  return v;
}

// Part by part: as a whole they would go through memory.
CLUSTERKV_SIMD Floats load(const void* from) {
  Floats v;
  for (int i = 0; i < kParts; ++i) {
    std::memcpy(&v.part[i], static_cast<const std::byte*>(from) + i * kPartBytes, kPartBytes);
  }
  return v;
}

CLUSTERKV_SIMD void store(const Floats& v, void* to) {
  for (int i = 0; i < kParts; ++i) {
    std::memcpy(static_cast<std::byte*>(to) + i * kPartBytes, &v.part[i], kPartBytes);
  }
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

CLUSTERKV_SIMD Floats operator-(const Floats& a, const Floats& b) {
  Floats difference;
  for (int i = 0; i < kParts; ++i) difference.part[i] = a.part[i] - b.part[i];
  return difference;
}

CLUSTERKV_SIMD Floats operator/(const Floats& a, const Floats& b) {
  Floats quotient;
  for (int i = 0; i < kParts; ++i) quotient.part[i] = a.part[i] / b.part[i];
  return quotient;
}

/// The smaller; b if a is NaN.
CLUSTERKV_SIMD Floats min(const Floats& a, const Floats& b) {
  Floats smaller;
  for (int i = 0; i < kParts; ++i) {
#if defined(__AVX512F__)
    smaller.part[i] = _mm512_min_ps(a.part[i], b.part[i]);
#elif defined(__AVX2__)
    smaller.part[i] = _mm256_min_ps(a.part[i], b.part[i]);
#else
    smaller.part[i] = a.part[i] < b.part[i] ? a.part[i] : b.part[i];
#endif
  }
  return smaller;
}

/// The larger; b if a is NaN.
CLUSTERKV_SIMD Floats max(const Floats& a, const Floats& b) {
  Floats larger;
  for (int i = 0; i < kParts; ++i) {
#if defined(__AVX512F__)
    larger.part[i] = _mm512_max_ps(a.part[i], b.part[i]);
#elif defined(__AVX2__)
    larger.part[i] = _mm256_max_ps(a.part[i], b.part[i]);
#else
    larger.part[i] = a.part[i] > b.part[i] ? a.part[i] : b.part[i];
#endif
  }
  return larger;
}

/// The largest lane, if none is NaN. Without a way through memory where there are instructions for it.
CLUSTERKV_SIMD float max(const Floats& v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 eight =
      _mm256_max_ps(_mm512_castps512_ps256(v.part[0]), _mm512_extractf32x8_ps(v.part[0], 1));
#else
  const __m256 eight = _mm256_max_ps(v.part[0], v.part[1]);
#endif
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#else
  float lane[kLanes];
  store(v, lane);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  }
  return lane[0];
#endif
}

/// a * b + c, rounded once except on the portable path.
CLUSTERKV_SIMD Part fma(Part a, Part b, Part c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
CLUSTERKV_SIMD Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  Floats sum;
  for (int i = 0; i < kParts; ++i) sum.part[i] = fma(a.part[i], b.part[i], c.part[i]);
  return sum;
}

/// 16 stored elements of a row.
template <DType kDType>
CLUSTERKV_SIMD Floats load_row(const std::byte* from) {
  if constexpr (kDType == DType::kF32) {
    return load(from);
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

/// Whether load_lanes() has an order of its own: the halves of 32 bits are widened by one instruction
/// each, but come apart.
template <DType kDType>
inline constexpr bool kApart = kParts > 1 && kDType == DType::kBF16;

/// Which of 16 stored elements is in a lane of load_lanes().
template <DType kDType>
constexpr int lane_element(int lane) {
  if (!kApart<kDType>) return lane;
  const int part = lane / kPartLanes;
  return part / 2 * 2 * kPartLanes + 2 * (lane % kPartLanes) + part % 2;
}

/// 16 stored elements of a row in the order that is quickest to load.
template <DType kDType>
CLUSTERKV_SIMD Floats load_lanes(const std::byte* from) {
  if constexpr (kApart<kDType>) {
    using Pairs = Vector<std::uint32_t, kPartLanes>;
    Floats v;
    for (int i = 0; i < kParts; i += 2) {
      Pairs pairs;
      std::memcpy(&pairs, from + i / 2 * static_cast<int>(sizeof pairs), sizeof pairs);
      v.part[i] = std::bit_cast<Part>(pairs << 16);
      v.part[i + 1] = std::bit_cast<Part>(pairs & 0xffff0000U);
    }
    return v;
  } else {
    return load_row<kDType>(from);
  }
}

/// 16 bytes with their sign.
CLUSTERKV_SIMD Floats load_bytes(const std::byte* from) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
#elif defined(__AVX2__)
  Floats v;
  for (int i = 0; i < kParts; ++i) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i * kPartLanes));
    v.part[i] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
  return v;
#else
  std::int8_t bytes[kLanes];
  std::memcpy(bytes, from, sizeof bytes);
  float wide[kLanes];
  for (int i = 0; i < kLanes; ++i) wide[i] = static_cast<float>(bytes[i]);
  return load(wide);
#endif
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
/// Four folded sums finished: lane i is the tree_sum() of what was folded to v[i].
CLUSTERKV_SIMD Quad finish(Quad a, Quad b, Quad c, Quad d) {
  const Quad ab =
      __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
  const Quad cd =
      __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
  return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
}

/// The tree_sum() of each v[i][j], in result[i][j].
template <int kRows, int kColumns>
CLUSTERKV_SIMD void tree_sums(const Floats (&v)[kRows][kColumns],
                              Quad (&result)[kRows][kColumns / 4]) {
  static_assert(kColumns % 4 == 0);
#if defined(__AVX512F__)
  if constexpr (kRows == 4 && kColumns == 4) {
    // The same additions on whole registers. In each step two registers become one with a half, then a
    // quarter, ... of the partial sums of both.
    __m512 half[8];
    for (int j = 0; j < 4; ++j) {
      for (int i = 0; i < 4; i += 2) {
        const __m512 a = v[i][j].part[0];
        const __m512 b = v[i + 1][j].part[0];
        half[2 * j + i / 2] = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
      }
    }
    __m512 column[4];
    for (int j = 0; j < 4; ++j) {
      const __m512 a = half[2 * j];
      const __m512 b = half[2 * j + 1];
      column[j] = _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
    }
    __m512 pair[2];
    for (int j = 0; j < 2; ++j) {
      const __m512 a = column[2 * j];
      const __m512 b = column[2 * j + 1];
      pair[j] = _mm512_shuffle_ps(a, b, 0x44) + _mm512_shuffle_ps(a, b, 0xee);
    }
    const __m512 all =
        _mm512_shuffle_ps(pair[0], pair[1], 0x88) + _mm512_shuffle_ps(pair[0], pair[1], 0xdd);
    result[0][0] = std::bit_cast<Quad>(_mm512_extractf32x4_ps(all, 0));
    result[1][0] = std::bit_cast<Quad>(_mm512_extractf32x4_ps(all, 1));
    result[2][0] = std::bit_cast<Quad>(_mm512_extractf32x4_ps(all, 2));
    result[3][0] = std::bit_cast<Quad>(_mm512_extractf32x4_ps(all, 3));
    return;
  }
#endif
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; j += 4) {
      result[i][j / 4] =
          finish(fold(v[i][j]), fold(v[i][j + 1]), fold(v[i][j + 2]), fold(v[i][j + 3]));
    }
  }
}

/// The sums over the lanes of four parts, in an order of each instruction set's own.
CLUSTERKV_SIMD Quad part_sums(Part a, Part b, Part c, Part d) {
#if defined(__AVX512F__)
  return finish(fold(Floats{a}), fold(Floats{b}), fold(Floats{c}), fold(Floats{d}));
#elif defined(__AVX2__)
  // Shuffles within halves of a register, which cost less than those across.
  const Part ab = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
                  __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  const Part cd = __builtin_shufflevector(c, d, 0, 8, 1, 9, 4, 12, 5, 13) +
                  __builtin_shufflevector(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
  const Part all = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
                   __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  return __builtin_shufflevector(all, all, 0, 1, 2, 3) +
         __builtin_shufflevector(all, all, 4, 5, 6, 7);
#else
  return finish(a, b, c, d);
#endif
}

// ------------------------------------------------------------------ products of 16-bit integers
// Sums of integers do not depend on their order: one register takes all products of a row.
inline constexpr int kWordLanes = 2 * kPartLanes;
using Words = Vector<std::int16_t, kWordLanes>;

CLUSTERKV_SIMD Words load_words(const std::int16_t* from) {
  Words v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

/// The first kCount of kWordLanes bytes with their sign, and zeros. Nothing behind them is read.
template <int kCount>
CLUSTERKV_SIMD Words widen_bytes(const std::int8_t* from) {
#if defined(__AVX512F__)
  static_assert(kCount == 0 || kCount == 16 || kCount == 32);
  const auto* bytes = reinterpret_cast<const __m128i*>(from);
  const __m256i all = kCount == 32 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                                   : _mm256_zextsi128_si256(_mm_loadu_si128(bytes));
  return reinterpret_cast<Words>(_mm512_cvtepi8_epi16(all));
#else
  static_assert(kCount == 0 || kCount == kWordLanes);
#if defined(__AVX2__)
  return reinterpret_cast<Words>(
      _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  Vector<std::int8_t, kWordLanes> bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, Words);
#endif
#endif
}

/// Adds products of neighbours; no product of this library overflows.
CLUSTERKV_SIMD IntPart dot_words(IntPart sum, Words a, Words b) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<IntPart>(_mm512_dpwssd_epi32(
      reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX512F__)
  return sum + reinterpret_cast<IntPart>(
                   _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return sum + reinterpret_cast<IntPart>(
                   _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return sum + reinterpret_cast<IntPart>(
                   _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  for (int j = 0; j < kPartLanes; ++j) {
    sum[j] += a[2 * j] * b[2 * j] + a[2 * j + 1] * b[2 * j + 1];
  }
  return sum;
#endif
}

// ------------------------------------------------------------- math.hpp, the same bits in each lane
CLUSTERKV_SIMD Floats exp2_fixed(const Floats& x) {
  using Bits = Vector<std::uint32_t, kPartLanes>;
  const Floats clamped = min(max(x, broadcast(-126.0F)), broadcast(127.0F));
  const Floats round = broadcast(12582912.0F);
  const Floats shifted = clamped + round;
  const Floats f = clamped - (shifted - round);
  Floats p = broadcast(exp2_term(0));
  for (int i = 1; i < kExp2Terms; ++i) p = p * f + broadcast(exp2_term(i));
  for (int i = 0; i < kParts; ++i) {
    const Bits exponent = (std::bit_cast<Bits>(shifted.part[i]) + 127U) << 23;
    const Part scaled = p.part[i] * std::bit_cast<Part>(exponent);
    p.part[i] = x.part[i] > -126.0F ? scaled : Part{};
  }
  return p;
}

CLUSTERKV_SIMD Floats log2_1p_fixed(const Floats& w) {
  using Bits = Vector<std::uint32_t, kPartLanes>;
  const Floats one = broadcast(1.0F);
  const Floats y = one + min(max(w, broadcast(0.0F)), broadcast(1e38F));
  Floats m;
  Floats n;
  for (int i = 0; i < kParts; ++i) {
    const auto bits = std::bit_cast<Bits>(y.part[i]);
    const Bits exponent = (bits - 0x3f3504f3U) >> 23;
    m.part[i] = std::bit_cast<Part>(bits - (exponent << 23));
    n.part[i] = __builtin_convertvector(std::bit_cast<IntPart>(exponent), Part);
  }
  const Floats s = (m - one) / (m + one);
  const Floats s2 = s * s;
  Floats p = broadcast(log2_term(0));
  for (int i = 1; i < kLog2Terms; ++i) p = p * s2 + broadcast(log2_term(i));
  return p * s + n;
}

CLUSTERKV_SIMD Floats tanh_fixed(const Floats& x) {
  using Bits = Vector<std::uint32_t, kPartLanes>;
  Floats a;
  for (int i = 0; i < kParts; ++i) {
    a.part[i] = std::bit_cast<Part>(std::bit_cast<Bits>(x.part[i]) & 0x7fffffffU);
  }
  const Floats s = a * a;
  Floats p = broadcast(tanh_term(0));
  for (int i = 1; i < kTanhTerms; ++i) p = p * s + broadcast(tanh_term(i));
  const Floats small = p * s * a + a;
  const Floats one = broadcast(1.0F);
  const Floats large = one - broadcast(2.0F) / (exp2_fixed(a * broadcast(2.0F * kLog2E)) + one);
  Floats t;
  for (int i = 0; i < kParts; ++i) {
    const Part magnitude = a.part[i] >= kTanhSmall ? large.part[i] : small.part[i];
    const Bits sign = std::bit_cast<Bits>(x.part[i]) & 0x80000000U;
    t.part[i] = std::bit_cast<Part>(std::bit_cast<Bits>(magnitude) | sign);
  }
  return t;
}

/// Keeps what was loaded in its register. Else each instruction that uses it may load it again, and
/// loads become the limit of a loop of multiply-adds.
template <class V>
CLUSTERKV_SIMD void pin(V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE2__)
  asm("" : "+x"(v));
#else
  static_cast<void>(v);
#endif
}
CLUSTERKV_SIMD void pin(Floats& v) {
  for (Part& part : v.part) pin(part);
}

/// Into the L2 cache. Into L1 the same reads take twice as long: there are fewer buffers for its misses
/// (docs/performance.md).
CLUSTERKV_SIMD void prefetch(const std::byte* line) {
  __builtin_prefetch(line, 0, 2);
}

}  // namespace CLUSTERKV_ISA
}  // namespace clusterkv::simd
