// SPDX-License-Identifier: Apache-2.0
//
// Scores of keys against all clusters by matrix units (stage 1, cluster): the labels are those of
// assign_block.hpp, bit for bit.
//
// Mapping: centroids, and keys that are no bf16, become the sum of two bf16. What that and the order of
//          sums can change in a score is bounded by kError |key| |centroid|; a key whose second best score
//          is no further than that from its best is scored again in vectors. 32 keys against 32
//          clusters at a time, the sums of a step in four of the eight tiles.
// Bound:   the matrix units; the running maxima of a tile are taken while the next is multiplied.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/cluster/cpu/assign_block.hpp"
#include "kernels/common/cpu/simd_tiles.hpp"

#ifdef __AMX_BF16__

namespace clusterkv::cluster::CLUSTERKV_ISA {

template <DType kDType, int kHeadDim>
class TileAssigner {
 public:
  explicit TileAssigner(const AssignParams& p)
      : p_(p), num_pairs_((p.num_clusters + kColumns - 1) / kColumns) {}

  void run() {
    const simd::TileShapes shapes;
    const simd::TileShape shape(shapes);
    split_centroids();
    for (int first = 0; first < p_.keys.num_tokens; first += kTokens) {
      const int count = std::min(kTokens, p_.keys.num_tokens - first);
      load_keys(first, count);
      simd::publish();
      for (int pair = 0; pair < num_pairs_; ++pair) {
        for (int row = 0; row < count; row += kRows) score(pair, row);
      }
      for (int i = 0; i < count; ++i) label(first + i, i);
    }
    score_again();
  }

 private:
  static constexpr int kRows = 2 * simd::kTileRows, kColumns = 2 * kPanel;
  static constexpr bool kIsExact = kDType == DType::kBF16;
  static constexpr int kTokens = kIsExact ? 2 * kRows : kRows;  // both halves stay in the L1 cache
  static constexpr int kDepth =
      (kHeadDim + simd::kTileDepth - 1) / simd::kTileDepth * simd::kTileDepth;
  static constexpr int kPanelWords = kDepth / 2 * kPanel;  // of one half
  /// Halves lose 2^-16 of a centroid, as much of a key, and as much where two low ones meet; a sum of n
  /// terms n 2^-24, here and in vectors.
  static constexpr float kSplit = 0x1p-16F * (kIsExact ? 1 : 3);
  static constexpr float kSums = 0x1p-24F * kHeadDim * (kIsExact ? 3 : 4);
  /// The norms that they are multiplied by are rounded themselves.
  static constexpr float kError = 1.01F * (kSplit + kSums);

  std::uint32_t* panel_words(int panel, int half) const {
    return static_cast<std::uint32_t*>(p_.tiles) + std::size_t(2 * panel + half) * kPanelWords;
  }

  /// The centroids' halves, and the largest norm and bias.
  void split_centroids() {
    const int num_panels = (p_.num_clusters + kPanel - 1) / kPanel;
    simd::Floats largest = simd::broadcast(0.0F);
    for (int panel = 0; panel < 2 * num_pairs_; ++panel) {
      std::uint32_t* high = panel_words(panel, 0);
      std::uint32_t* low = panel_words(panel, 1);
      std::fill_n(high, 2 * kPanelWords, 0U);
      if (panel >= num_panels) continue;
      const float* from = p_.centroids + std::size_t(panel) * kPanel * kHeadDim;
      simd::Floats norm2 = simd::broadcast(0.0F);
      for (int d = 0; d < kHeadDim; d += 2) {
        const simd::Floats even = simd::load(from + d * kPanel);
        const simd::Floats odd = simd::load(from + (d + 1) * kPanel);
        const simd::Halves a = simd::halves_of(even), b = simd::halves_of(odd);
        simd::store_pairs(a.high, b.high, high + d / 2 * kPanel);
        simd::store_pairs(a.low, b.low, low + d / 2 * kPanel);
        norm2 = norm2 + even * even + odd * odd;
      }
      largest = larger(norm2, largest);
      for (int i = 0; i < kPanel && panel * kPanel + i < p_.num_clusters; ++i) {
        largest_bias_ = larger(std::fabs(p_.bias[panel * kPanel + i]), largest_bias_);
      }
    }
    float lanes[kPanel];
    simd::store(largest, lanes);
    for (const float norm2 : lanes) largest_norm_ = larger(std::sqrt(norm2), largest_norm_);
  }

  /// NaN if one of them is.
  static float larger(float a, float b) { return a <= b ? b : a + 0 * b; }
  static simd::Floats larger(const simd::Floats& a, const simd::Floats& b) {
    return simd::max(a, b) + simd::broadcast(0.0F) * b + simd::broadcast(0.0F) * a;
  }

  void load_keys(int first, int count) {
    for (int i = 0; i < count; ++i) {
      alignas(64) float key[kHeadDim];
      widen<kDType, kHeadDim>(p_.keys, first + i, key);
      simd::Floats norm2 = simd::broadcast(0.0F);
      for (int d = 0; d < kHeadDim; d += simd::kLanes) {
        const simd::Floats x = simd::load(key + d);
        const simd::Halves halves = simd::halves_of(x);
        simd::store_upper(halves.high, high_[i] + d);
        if constexpr (!kIsExact) simd::store_upper(halves.low, low_[i] + d);
        norm2 = norm2 + x * x;
      }
      norm_[i] = std::sqrt(simd::sum_of(norm2));
      best_[i] = second_[i] = simd::broadcast(kMinusInfinity);
    }
  }

  /// 32 keys from `row` against the clusters of two panels. A lane keeps its best and second best score
  /// and the panel of the best.
  void score(int pair, int row) {
    alignas(64) float sums[2][2][simd::kTileRows][kPanel];
    simd::multiply_tiles<kDepth>({high_[row], kIsExact ? nullptr : low_[row], kDepth},
                                 {{panel_words(2 * pair, 0), panel_words(2 * pair + 1, 0)},
                                  {panel_words(2 * pair, 1), panel_words(2 * pair + 1, 1)}},
                                 sums);
    const int first = pair * kColumns;
    const bool has_both = first + kPanel < p_.num_clusters;
    const simd::Floats bias[2] = {
        simd::load(p_.bias + first),
        has_both ? simd::load(p_.bias + first + kPanel) : simd::broadcast(-kMinusInfinity)};
    for (int tile = 0; tile < 2; ++tile) {
      for (int i = 0; i < simd::kTileRows; ++i) {
        const int key = row + tile * simd::kTileRows + i;
        simd::Floats best = best_[key], second = second_[key];
        simd::IntPart panel = panel_[key].part[0];
        for (int j = 0; j < 2; ++j) {
          const simd::Floats score = simd::load(sums[tile][j][i]) - bias[j];
          second = simd::max(simd::min(score, best), second);
          panel = score.part[0] > best.part[0] ? simd::IntPart{} + (first + j * kPanel) : panel;
          best = simd::max(score, best);
        }
        best_[key] = best;
        second_[key] = second;
        panel_[key].part[0] = panel;
      }
    }
  }

  /// The label of key i of the block, if no other cluster can be its best.
  void label(int token, int i) {
    const float best = simd::largest(best_[i]);
    const float error = kError * norm_[i] * largest_norm_ + 0x1p-22F * largest_bias_ + kSmallest;
    const simd::Floats limit = simd::broadcast(best - 2 * error);
    const unsigned rivals = simd::lanes_not_below(best_[i], limit);
    const bool is_sure = best > kMinusInfinity && std::has_single_bit(rivals) &&
                         simd::lanes_not_below(second_[i], limit) == 0;
    if (is_sure) {
      const int lane = std::countr_zero(rivals);
      p_.labels[token] = panel_[i].part[0][lane] + lane;
      return;
    }
    unsure_[num_unsure_++] = token;
    if (num_unsure_ == kBlock) score_again();
  }

  void score_again() {
    alignas(64) float keys[kBlock][kHeadDim];
    for (int i = 0; i < num_unsure_; ++i) widen<kDType, kHeadDim>(p_.keys, unsure_[i], keys[i]);
    std::int32_t labels[kBlock];
    assign_block<kHeadDim>(p_, keys, num_unsure_, labels);
    for (int i = 0; i < num_unsure_; ++i) p_.labels[unsure_[i]] = labels[i];
    num_unsure_ = 0;
  }

  /// Far above what matrix units take for 0 or round to it, times head_dim.
  static constexpr float kSmallest = 1e-30F;

  const AssignParams& p_;
  int num_pairs_;
  float largest_norm_ = 0;
  float largest_bias_ = 0;
  int num_unsure_ = 0;
  int unsure_[kBlock];
  float norm_[kTokens];
  simd::Floats best_[kTokens], second_[kTokens];
  simd::Ints panel_[kTokens] = {};
  alignas(64) std::uint16_t high_[kTokens][kDepth] = {};
  alignas(64) std::uint16_t low_[kIsExact ? 1 : kTokens][kDepth] = {};
};

}  // namespace clusterkv::cluster::CLUSTERKV_ISA

#endif
