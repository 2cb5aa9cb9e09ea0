// SPDX-License-Identifier: Apache-2.0
//
// The running softmax of up to kMaxPassHeads query heads over rows that come in tiles.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/attend/rules.hpp"
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
inline void add_state(float& m, float& l, float* o, float m2, float l2, const float* o2,
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

/// m in units of log2; l = sum of 2^(x - m); o = sum of 2^(x - m) v.
template <DType kDType, int kHeadDim>
class SoftmaxState {
 public:
  /// `query` [heads, kHeadDim]; logits are `scale` times dot products, in units of log2.
  SoftmaxState(const float* query, int heads, float scale)
      : query_(query), heads_(heads), scale_(scale) {
    std::fill(std::begin(m_), std::end(m_), kMinusInfinity);
    std::fill(std::begin(l_), std::end(l_), 0.0F);
    for (int g = 0; g < heads; ++g) std::fill(o_[g], o_[g] + kHeadDim, 0.0F);
  }

  void add(const RowTile& tile) {
    score(tile);
    for (int g = 0; g < heads_; ++g) rescale(g, tile.seen[g]);
    for (int i = 0; i < tile.count; ++i) {
      alignas(64) float value[kHeadDim];
      load_elements<kDType>(tile.value[i], kHeadDim, value);
      for (int g = 0; g < heads_; ++g) {
        const float p = x_[g][i];
        for (int d = 0; d < kHeadDim; ++d) o_[g][d] += p * value[d];
      }
    }
  }

  [[nodiscard]] float m(int g) const { return m_[g]; }
  [[nodiscard]] float l(int g) const { return l_[g]; }
  [[nodiscard]] const float* o(int g) const { return o_[g]; }

 private:
  void score(const RowTile& tile) {
    for (int i = 0; i < tile.count; ++i) {
      alignas(64) float key[kHeadDim];
      load_elements<kDType>(tile.key[i], kHeadDim, key);
      for (int g = 0; g < heads_; ++g) {
        x_[g][i] = dot_fixed<kHeadDim>(query_ + g * kHeadDim, key) * scale_;
      }
    }
  }

  /// Logits of head g become weights; what was summed before moves to the new maximum.
  void rescale(int g, int count) {
    float max = m_[g];
    for (int i = 0; i < count; ++i) max = x_[g][i] > max ? x_[g][i] : max;
    if (max > m_[g] && l_[g] > 0.0F) {
      const float factor = exp2_fixed(m_[g] - max);
      l_[g] *= factor;
      for (int d = 0; d < kHeadDim; ++d) o_[g][d] *= factor;
    }
    m_[g] = max;
    float sum[kSumLanes] = {};
    for (int i = count; i < kRowTile; ++i) x_[g][i] = kMinusInfinity;
    for (int i = 0; i < kRowTile; ++i) x_[g][i] = exp2_fixed(x_[g][i] - max);
    for (int i = 0; i < kRowTile; i += kSumLanes) {
      for (int j = 0; j < kSumLanes; ++j) sum[j] += x_[g][i + j];
    }
    l_[g] += tree_sum<kSumLanes>(sum);
  }

  const float* query_;
  int heads_;
  float scale_;
  float m_[kMaxPassHeads];
  float l_[kMaxPassHeads];
  alignas(64) float o_[kMaxPassHeads][kHeadDim];
  alignas(64) float x_[kMaxPassHeads][kRowTile];
};

}  // namespace clusterkv::attend::CLUSTERKV_ISA
