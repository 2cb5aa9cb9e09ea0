// SPDX-License-Identifier: Apache-2.0
//
// The running softmax of up to kMaxPassHeads query heads over rows that come in tiles.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/attend/cpu/weighted_sum.hpp"
#include "kernels/attend/rules.hpp"
#include "kernels/common/cpu/simd.hpp"
#include "kernels/common/math.hpp"
#include "kernels/common/numeric.hpp"

namespace clusterkv::attend::CLUSTERKV_ISA {

/// Rows of one tile, wherever they lie.
struct RowTile {
  int count = 0;
  int seen[kMaxPassHeads];  ///< rows that each head sees, the first ones
  const std::byte* key[kRowTile];
  const std::byte* value[kRowTile];
};

/// Adds state (m2, l2, o2) to (m, l, o). States with l = 0 are empty.
CLUSTERKV_SIMD void add_state(float& m, float& l, float* o, float m2, float l2, const float* o2,
                              int head_dim) {
  if (!(l2 > 0.0F)) return;
  if (!(l > 0.0F)) {
    m = m2;
    l = l2;
    std::copy(o2, o2 + head_dim, o);
    return;
  }
  const float max = m > m2 ? m : m2;
  const float a = exp2_fixed(m - max);
  const float b = exp2_fixed(m2 - max);
  m = max;
  l = l * a + l2 * b;
  for (int d = 0; d < head_dim; ++d) o[d] = o[d] * a + o2[d] * b;
}

/// Which element of a row is at place d where rows are widened 16 elements at a time.
template <DType kDType>
constexpr int lane_place(int d) {
  return d / simd::kLanes * simd::kLanes + simd::lane_element<kDType>(d % simd::kLanes);
}

/// The queries of a pass, in the forms that products with keys take.
template <DType kDType, int kHeadDim>
struct Queries {
  /// bf16 keys are multiplied as they lie, by queries split into two bf16 planes, q = high + low up to
  /// 2^-17: one instruction a plane instead of a conversion and two fused multiply-adds. Engines give
  /// queries in bf16, and then the low plane is zero and left out.
  static constexpr bool kPaired =
      simd::kHasPairDot && kDType == DType::kBF16 && kHeadDim % simd::kLanes == 0;
  static constexpr int kPlaneDim = (kHeadDim + 31) / 32 * 32;

  Queries(const float* query, int heads) {
    for (int g = 0; g < heads; ++g, query += kHeadDim) {
      if constexpr (kPaired) {
        split(query, high[g], low[g]);
      } else {
        for (int d = 0; d < kHeadDim; ++d) lanes[g][d] = query[lane_place<kDType>(d)];
      }
    }
  }

  void split(const float* query, std::uint16_t* to_high, std::uint16_t* to_low) {
    float rest[kHeadDim];
    for (int d = 0; d < kHeadDim; ++d) to_high[d] = float_to_bf16(query[d]);
    for (int d = 0; d < kHeadDim; ++d) rest[d] = query[d] - bf16_to_float(to_high[d]);
    for (int d = 0; d < kHeadDim; ++d) to_low[d] = float_to_bf16(rest[d]);
    for (int d = 0; d < kHeadDim; ++d) has_low = has_low || rest[d] != 0.0F;
  }

  alignas(64) float lanes[kPaired ? 1 : kMaxPassHeads][kPaired ? 1 : kHeadDim];
  bool has_low = false;
  alignas(64) std::uint16_t high[kPaired ? kMaxPassHeads : 1][kPaired ? kPlaneDim : 1] = {};
  alignas(64) std::uint16_t low[kPaired ? kMaxPassHeads : 1][kPaired ? kPlaneDim : 1] = {};
};

/// m in units of log2; l = sum of 2^(x - m); o = sum of 2^(x - m) v.
template <DType kDType, int kHeadDim>
class SoftmaxState {
 public:
  /// Logits are `scale` times dot products, in units of log2.
  SoftmaxState(const Queries<kDType, kHeadDim>& query, int heads, float scale)
      : query_(query), heads_(heads), scale_(scale) {
    std::fill(std::begin(m_), std::end(m_), kMinusInfinity);
    std::fill(std::begin(l_), std::end(l_), 0.0F);
    for (int g = 0; g < heads; ++g) std::fill(o_[g], o_[g] + kHeadDim, 0.0F);
  }

  /// While `tile` is added its values come into the cache, and then the keys of `next`.
  void add(RowTile& tile, const RowTile& next) {
    for (int i = tile.count; i % kRows != 0; ++i) tile.key[i] = tile.key[tile.count - 1];
    query_.has_low ? score<2>(tile) : score<1>(tile);
    for (int g = 0; g < heads_; ++g) rescale(g, tile.seen[g]);
    add_values(tile, next);
  }

  [[nodiscard]] float m(int g) const { return m_[g]; }
  [[nodiscard]] float l(int g) const { return l_[g]; }
  void copy_o(int g, float* to) const {
    for (int d = 0; d < kHeadDim; ++d) to[lane_place<kDType>(d)] = o_[g][d];
  }

 private:
  static constexpr int kRowBytes = kHeadDim * kElementBytes<kDType>;
  static constexpr int kLineBytes = 64;
  /// Rows and heads whose products are finished at once, and rows whose sums are in registers.
  static constexpr int kRows = 4;
  static constexpr int kFlight = simd::kParts == 1 ? 4 : 2;
  static constexpr int kHeads = simd::kAccumulators / kFlight;

  template <int kPlanes>
  void score(const RowTile& tile) {
    for (int row = 0; row < tile.count; row += kRows) {
      for (int r = row; r < row + kRows && r < tile.count; ++r) prefetch_row(tile.value[r]);
      const std::byte* const* key = tile.key + row;
      int g = 0;
      for (; g + kHeads <= heads_; g += kHeads) score_heads<kPlanes, kHeads>(key, g, row);
      for (; g < heads_; ++g) score_heads<kPlanes, 1>(key, g, row);
    }
  }

  template <int kPlanes, int kGroup>
  CLUSTERKV_SIMD void score_heads(const std::byte* const* key, int first_head, int row) {
    simd::Floats sum[kGroup][kRows];
    if constexpr (Queries<kDType, kHeadDim>::kPaired) {
      multiply_pairs<kPlanes>(key, first_head, sum);
    } else {
      for (int r = 0; r < kRows; r += kFlight) multiply(key, first_head, r, sum);
    }
    write_scores(sum, first_head, row);
  }

  /// Rows [row, row + kFlight).
  template <int kGroup>
  CLUSTERKV_SIMD void multiply(const std::byte* const* key, int first_head, int row,
                               simd::Floats (&sum)[kGroup][kRows]) const {
    simd::Floats lanes[kGroup][kFlight];
    for (auto& head : lanes) {
      for (simd::Floats& of_row : head) of_row = simd::broadcast(0.0F);
    }
#pragma GCC unroll 1  // else what several calls load alike is kept on the stack
    for (int d = 0; d < kHeadDim; d += simd::kLanes) {
      simd::Floats wide[kFlight];
      for (int r = 0; r < kFlight; ++r) {
        wide[r] = simd::load_lanes<kDType>(key[row + r] + d * kElementBytes<kDType>);
      }
      for (int g = 0; g < kGroup; ++g) {
        const simd::Floats q = simd::load(query_.lanes[first_head + g] + d);
        for (int r = 0; r < kFlight; ++r) lanes[g][r] = simd::fma(wide[r], q, lanes[g][r]);
      }
    }
    for (int g = 0; g < kGroup; ++g) {
      for (int r = 0; r < kFlight; ++r) sum[g][row + r] = lanes[g][r];
    }
  }

  template <int kPlanes, int kGroup, int kGroupRows>
  CLUSTERKV_SIMD void multiply_pairs(const std::byte* const* key, int first_head,
                                     simd::Floats (&sum)[kGroup][kGroupRows]) const {
    for (auto& head : sum) {
      for (simd::Floats& lanes : head) lanes = simd::broadcast(0.0F);
    }
    for (int d = 0; d < kHeadDim; d += simd::kPairLanes) {
      const bool whole = d + simd::kPairLanes <= kHeadDim;
      simd::Pairs pairs[kGroupRows];
      for (int r = 0; r < kGroupRows; ++r) {
        pairs[r] = whole ? simd::load_pairs(key[r] + 2 * d) : simd::load_half_pairs(key[r] + 2 * d);
      }
      for (int g = 0; g < kGroup; ++g) {
        for (int plane = 0; plane < kPlanes; ++plane) {
          const auto& from = plane == 0 ? query_.high : query_.low;
          const simd::Pairs q =
              simd::load_pairs(reinterpret_cast<const std::byte*>(from[first_head + g] + d));
          for (int r = 0; r < kGroupRows; ++r) sum[g][r] = simd::dot_pairs(sum[g][r], pairs[r], q);
        }
      }
    }
  }

  template <int kGroup, int kGroupRows>
  CLUSTERKV_SIMD void write_scores(const simd::Floats (&sum)[kGroup][kGroupRows], int first_head,
                                   int row) {
    simd::Quad dots[kGroup][kGroupRows / 4];
    simd::tree_sums(sum, dots);
    for (int g = 0; g < kGroup; ++g) {
      for (int r = 0; r < kGroupRows; r += 4) {
        const simd::Quad scaled = dots[g][r / 4] * scale_;
        std::memcpy(x_[first_head + g] + row + r, &scaled, sizeof scaled);
      }
    }
  }

  /// Logits of head g become weights; what was summed before moves to the new maximum.
  void rescale(int g, int count) {
    std::fill(x_[g] + count, x_[g] + kRowTile, kMinusInfinity);
    simd::Floats largest = simd::broadcast(m_[g]);
    for (int i = 0; i < kRowTile; i += simd::kLanes) {
      largest = simd::max(simd::load(x_[g] + i), largest);
    }
    const float max = simd::max(largest);
    if (max > m_[g] && l_[g] > 0.0F) {
      const float factor = exp2_fixed(m_[g] - max);
      l_[g] *= factor;
      for (int d = 0; d < kHeadDim; ++d) o_[g][d] *= factor;
    }
    m_[g] = max;
    simd::Floats sum = simd::broadcast(0.0F);
    for (int i = 0; i < kRowTile; i += simd::kLanes) {
      const simd::Floats p = simd::exp2_fixed(simd::load(x_[g] + i) - simd::broadcast(max));
      simd::store(p, x_[g] + i);
      sum = sum + p;
    }
    const simd::Quad quad = simd::fold(sum);
    l_[g] += simd::finish(quad, quad, quad, quad)[0];
  }

  struct Value {
    static constexpr int kBytes = kElementBytes<kDType>;
    static simd::Floats load(const std::byte* from) { return simd::load_lanes<kDType>(from); }
  };

  void add_values(const RowTile& tile, const RowTile& next) {
    float* sums[kMaxPassHeads];
    for (int g = 0; g < heads_; ++g) sums[g] = o_[g];
    add_weighted<Value, kHeadDim>(tile.value, tile.count, x_, heads_, sums,
                                  [&](int i, std::size_t first, std::size_t bytes) {
                                    if (i >= next.count) return;
                                    for (std::size_t at = 0; at < bytes; at += kLineBytes) {
                                      simd::prefetch(next.key[i] + first + at);
                                    }
                                  });
  }

  static void prefetch_row(const std::byte* row) {
    for (int at = 0; at < kRowBytes; at += kLineBytes) simd::prefetch(row + at);
  }

  const Queries<kDType, kHeadDim>& query_;
  int heads_;
  float scale_;
  float m_[kMaxPassHeads];
  float l_[kMaxPassHeads];
  alignas(64) float o_[kMaxPassHeads][kHeadDim];
  alignas(64) float x_[kMaxPassHeads][kRowTile];
};

}  // namespace clusterkv::attend::CLUSTERKV_ISA
