// SPDX-License-Identifier: Apache-2.0
//
// Sums and maxima over the lanes of a vector, in an order of each instruction set's own: for attention,
// whose outputs may differ by rounding. Plain vectors; simd.hpp alone names instructions.
#pragma once

#include "kernels/common/cpu/simd.hpp"

namespace clusterkv::simd {
inline namespace CLUSTERKV_ISA {

/// Keeps what was loaded in its register. Else each instruction that uses it may load it again, and
/// loads become the limit of a loop of multiply-adds.
CLUSTERKV_SIMD void pin(Floats& v) {
#if defined(__x86_64__)
  for (Part& part : v.part) asm("" : "+x"(part));
#else
  static_cast<void>(v);
#endif
}

/// The sums over the lanes of four parts.
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

/// The largest lane; none may be NaN.
CLUSTERKV_SIMD float largest(const Floats& v) {
  Part part = v.part[0];
  for (int i = 1; i < kParts; ++i) part = part > v.part[i] ? part : v.part[i];
#if defined(__AVX512F__)
  const auto low = __builtin_shufflevector(part, part, 0, 1, 2, 3, 4, 5, 6, 7);
  const auto high = __builtin_shufflevector(part, part, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto half = low > high ? low : high;
#else
  const Part half = part;
#endif
#if defined(__AVX2__)
  const Quad first = __builtin_shufflevector(half, half, 0, 1, 2, 3);
  const Quad last = __builtin_shufflevector(half, half, 4, 5, 6, 7);
  const Quad quad = first > last ? first : last;
#else
  const Quad quad = half;
#endif
  const Quad other = __builtin_shufflevector(quad, quad, 2, 3, 0, 1);
  const Quad pair = quad > other ? quad : other;
  return pair[0] > pair[1] ? pair[0] : pair[1];
}

}  // namespace CLUSTERKV_ISA
}  // namespace clusterkv::simd
