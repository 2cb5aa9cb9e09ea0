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

/// What is done besides, once for each row: nothing.
struct NoPrefetch {
  void operator()(int /*row*/, std::size_t /*first_byte*/, std::size_t /*bytes*/) const {}
};

/// Elements [first, first + 16 kChunks), for heads [head, head + kGroup).
template <class Row, int kGroup, int kChunks, int kCount, class Prefetch>
CLUSTERKV_SIMD void add_weighted_chunks(const std::byte* const* rows, int count,
                                        const float (*weight)[kCount], int head, float* const* sums,
                                        int first, const Prefetch& prefetch) {
  constexpr int kStep = simd::kLanes * Row::kBytes;
  simd::Floats sum[kGroup][kChunks];
  for (int g = 0; g < kGroup; ++g) {
    for (int c = 0; c < kChunks; ++c) {
      sum[g][c] = simd::load(sums[head + g] + first + c * simd::kLanes);
    }
  }
  const auto begin = static_cast<std::size_t>(first * Row::kBytes);
  for (int i = 0; i < count; ++i) {
    if (head == 0) prefetch(i, begin, std::size_t{kChunks * kStep});
    const std::byte* row = rows[i] + begin;
    simd::Floats wide[kChunks];
    for (int c = 0; c < kChunks; ++c) wide[c] = Row::load(row + c * kStep);
    for (int g = 0; g < kGroup; ++g) {
      const simd::Floats w = simd::broadcast(weight[head + g][i]);
      for (int c = 0; c < kChunks; ++c) sum[g][c] = simd::fma(w, wide[c], sum[g][c]);
    }
  }
  for (int g = 0; g < kGroup; ++g) {
    for (int c = 0; c < kChunks; ++c) {
      simd::store(sum[g][c], sums[head + g] + first + c * simd::kLanes);
    }
  }
}

template <class Row, int kHeadDim, int kGroup, int kCount, class Prefetch>
void add_weighted_heads(const std::byte* const* rows, int count, const float (*weight)[kCount],
                        int head, float* const* sums, const Prefetch& prefetch) {
  constexpr int kAll = kHeadDim / simd::kLanes;
  constexpr int kChunks = std::clamp(simd::kAccumulators / kGroup, 1, kAll);
  for (int c = 0; c + kChunks <= kAll; c += kChunks) {
    add_weighted_chunks<Row, kGroup, kChunks>(rows, count, weight, head, sums, c * simd::kLanes,
                                              prefetch);
  }
  if constexpr (kAll % kChunks != 0) {
    add_weighted_chunks<Row, kGroup, kAll % kChunks>(
        rows, count, weight, head, sums, kAll / kChunks * kChunks * simd::kLanes, prefetch);
  }
}

/// sums[g][d] += weight[g][i] rows[i][d], rows in order, for heads [0, heads). Row::load widens 16
/// elements of Row::kBytes each.
template <class Row, int kHeadDim, int kCount, class Prefetch = NoPrefetch>
void add_weighted(const std::byte* const* rows, int count, const float (*weight)[kCount], int heads,
                  float* const* sums, const Prefetch& prefetch = {}) {
  int g = 0;
  for (; g + 4 <= heads; g += 4) {
    add_weighted_heads<Row, kHeadDim, 4>(rows, count, weight, g, sums, prefetch);
  }
  for (; g + 2 <= heads; g += 2) {
    add_weighted_heads<Row, kHeadDim, 2>(rows, count, weight, g, sums, prefetch);
  }
  for (; g < heads; ++g) {
    add_weighted_heads<Row, kHeadDim, 1>(rows, count, weight, g, sums, prefetch);
  }
}

}  // namespace clusterkv::attend::CLUSTERKV_ISA
