// SPDX-License-Identifier: Apache-2.0
//
// Sums of rows with a weight for each query head: the values of attend_rows, the value means of
// attend_tail.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/common/cpu/simd.hpp"
#include "kernels/common/tuning.hpp"

namespace clusterkv::attend::CLUSTERKV_ISA {

/// What is done besides, once for some rows: nothing.
struct NoPrefetch {
  CLUSTERKV_SIMD void operator()(int /*row*/, int /*rows*/) const {}
};

/// Rows that are added at once: read side by side from one end to the other, as hardware expects it, and
/// enough that sums need not be read and written often.
inline constexpr int kSumRows = 4;

/// Rows [row, row + kRows), for heads [head, head + kGroup).
template <class Row, int kGroup, int kRows, class Dim, int kCount>
CLUSTERKV_SIMD void add_weighted_rows(Dim dim, const std::byte* const* rows, int row,
                                      const float (*weight)[kCount], int head, float* const* sums) {
  const int end = dim;
#pragma GCC unroll 1  // else what several calls load alike is kept on the stack
  for (int d = 0; d < end; d += simd::kLanes) {
    simd::Floats wide[kRows];
    for (int r = 0; r < kRows; ++r) wide[r] = Row::load(rows[row + r] + d * Row::kBytes);
    for (int g = 0; g < kGroup; ++g) {
      simd::Floats sum = simd::load(sums[head + g] + d);
      for (int r = 0; r < kRows; ++r) {
        sum = simd::fma(simd::broadcast(weight[head + g][row + r]), wide[r], sum);
      }
      simd::store(sum, sums[head + g] + d);
    }
  }
}

template <class Row, int kRows, class Dim, int kCount>
CLUSTERKV_SIMD void add_weighted_heads(Dim dim, const std::byte* const* rows, int row,
                                       const float (*weight)[kCount], int heads,
                                       float* const* sums) {
  int g = 0;
  for (; g + 4 <= heads; g += 4) {
    add_weighted_rows<Row, 4, kRows>(dim, rows, row, weight, g, sums);
  }
  for (; g + 2 <= heads; g += 2) {
    add_weighted_rows<Row, 2, kRows>(dim, rows, row, weight, g, sums);
  }
  for (; g < heads; ++g) {
    add_weighted_rows<Row, 1, kRows>(dim, rows, row, weight, g, sums);
  }
}

/// sums[g][d] += weight[g][i] rows[i][d], rows in order, for heads [0, heads). Row::load widens 16
/// elements of Row::kBytes each, of `dim`, which is FixedDim or AnyDim.
template <class Row, class Dim, int kCount, class Prefetch = NoPrefetch>
void add_weighted(Dim dim, const std::byte* const* rows, int count, const float (*weight)[kCount],
                  int heads, float* const* sums, const Prefetch& prefetch = {}) {
  int row = 0;
  for (; row + kSumRows <= count; row += kSumRows) {
    prefetch(row, kSumRows);
    add_weighted_heads<Row, kSumRows>(dim, rows, row, weight, heads, sums);
  }
  for (; row < count; ++row) {
    prefetch(row, 1);
    add_weighted_heads<Row, 1>(dim, rows, row, weight, heads, sums);
  }
}

}  // namespace clusterkv::attend::CLUSTERKV_ISA
