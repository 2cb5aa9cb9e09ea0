// SPDX-License-Identifier: Apache-2.0
//
// z of clusters for the queries of a pass: products with the centroids of a block, by the type of the index.
// Centroids of the next block are fetched meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/common/cpu/simd.hpp"
#include "kernels/common/cpu/simd_select.hpp"
#include "kernels/common/numeric.hpp"
#include "kernels/select/rules.hpp"

namespace clusterkv::select::CLUSTERKV_ISA {

/// Heads whose products are formed at once; clusters whose sums are in registers meanwhile, and how many
/// registers these leave when they are joined.
constexpr int kTileHeads = 4;
constexpr int kFlight = simd::kJoin;
constexpr int kJoined = simd::kSums / kFlight;
using BlockScores = float[kBlockClusters];

/// The centroids of the block after this one, fetched a few lines at a time, from its two halves in turn:
/// the hardware then follows two pages. One part of kFetches between products, the others while the block's
/// scores are finished, which reads nothing (docs/performance.md).
class NextBlock {
 public:
  static constexpr int kLineBytes = 64;

  CLUSTERKV_SIMD NextBlock(const std::byte* centroids, std::size_t bytes)
      : half_{centroids, centroids + bytes / 2} {}
  CLUSTERKV_SIMD void fetch(int lines) {
    for (int i = 0; i < lines; ++i, ++next_) {
      simd::prefetch(half_[next_ % 2] + next_ / 2 * kLineBytes);
    }
  }

 private:
  const std::byte* half_[2];
  unsigned next_ = 0;
};

/// The queries of a pass as two int8 planes in one 16-bit integer: products with int8 centroids are
/// integer sums.
template <int kHeadDim>
class IntQueries {
 public:
  static constexpr int kTile = simd::kSums;
  static constexpr int kRowBytes = kHeadDim;
  static constexpr int kFetches = 2;
  static constexpr int kFetchLines = kFlight * kRowBytes / NextBlock::kLineBytes / kFetches;

  IntQueries(const float* query, int heads, float softmax_scale) : heads_(heads) {
    for (int g = 0; g < heads; ++g) quantise(g, query + g * kHeadDim, softmax_scale * kLog2E);
  }

  /// z of clusters [first, first + kTile) of a block, for every head.
  void score(const std::byte* centroids, const float* centroid_scale, int first, NextBlock& next,
             BlockScores* z) {
    const auto* rows = reinterpret_cast<const std::int8_t*>(centroids) + first * kHeadDim;
    simd::FloatSums scale;
    std::memcpy(&scale, centroid_scale + first, sizeof scale);
    int g = 0;
    for (; g + kTileHeads <= heads_; g += kTileHeads)
      multiply<kTileHeads>(g, rows, scale, first, next, z);
    for (; g < heads_; ++g) multiply<1>(g, rows, scale, first, next, z);
  }

 protected:
  static constexpr int kStep = simd::kWordLanes;
  static constexpr int kWords = (kHeadDim + kStep - 1) / kStep * kStep;

  /// quantise_query(), which is of a single number, of a head's elements.
  void quantise(int g, const float* query, float scale) {
    simd::Floats largest = simd::broadcast(0.0F);
    for (int d = 0; d < kHeadDim; d += simd::kLanes) {
      largest = simd::max(simd::magnitude(simd::load(query + d)), largest);
    }
    const float max_abs = simd::max(largest);
    const bool usable = max_abs > 0.0F && max_abs <= 3.4e38F;
    const simd::Floats inverse = simd::broadcast(usable ? kQueryMax / max_abs : 0.0F);
    for (int d = 0; d < kHeadDim; d += simd::kLanes) {
      const simd::Floats x = simd::load(query + d) * inverse;
      const simd::Floats low = simd::max(x, simd::broadcast(-kQueryMax));
      simd::store_rounded(simd::zero_if_nan(x, simd::min(low, simd::broadcast(kQueryMax))),
                          query_[g] + d);
    }
    factor_[g] = scale * (usable ? max_abs / kQueryMax : 0.0F);
  }

  template <int kGroup>
  CLUSTERKV_SIMD void multiply(int head, const std::int8_t* rows, const simd::FloatSums& scale,
                               int first, NextBlock& next, BlockScores* z) const {
    simd::IntPart part[kGroup][kJoined];
    for (int i = 0; i < kJoined; ++i) {
      if (head == 0) next.fetch(kFetchLines);
      add_products(head, rows + i * kFlight * kHeadDim, i, part);
    }
    for (int g = 0; g < kGroup; ++g) {
      const simd::FloatSums scores =
          __builtin_convertvector(simd::lane_sums(part[g]), simd::FloatSums) *
          (scale * factor_[head + g]);
      std::memcpy(z[head + g] + first, &scores, sizeof scores);
    }
  }

  /// Of kFlight clusters.
  template <int kGroup>
  CLUSTERKV_SIMD void add_products(int head, const std::int8_t* rows, int at,
                                   simd::IntPart (&part)[kGroup][kJoined]) const {
    simd::IntPart lanes[kGroup][kFlight] = {};
#pragma GCC unroll 2
    for (int d = 0; d < kWords; d += kStep) {
      simd::Words centroid[kFlight];
      for (int i = 0; i < kFlight; ++i) {
        const std::int8_t* bytes = rows + i * kHeadDim + d;
        centroid[i] = d + kStep <= kHeadDim ? simd::widen_bytes<kStep>(bytes)
                                            : simd::widen_bytes<kHeadDim % kStep>(bytes);
      }
      for (int g = 0; g < kGroup; ++g) {
        simd::Words q = simd::load_words(query_[head + g] + d);
        simd::pin(q);
        for (int i = 0; i < kFlight; ++i) {
          lanes[g][i] = simd::dot_words(lanes[g][i], centroid[i], q);
        }
      }
    }
    for (int g = 0; g < kGroup; ++g) part[g][at] = simd::join(lanes[g]);
  }

  int heads_;
  float factor_[kMaxPassHeads];  ///< turns a product into z, without the centroid's scale
  alignas(64) std::int16_t query_[kMaxPassHeads][kWords] = {};
};

/// The queries of a pass for centroids of floating point: sums in the order of dot_fixed().
template <DType kStored, int kHeadDim>
class FloatQueries {
 public:
  static constexpr int kTile = 4;
  static constexpr int kRowBytes = kHeadDim * kElementBytes<kStored>;
  static constexpr int kFetches = 2;
  static constexpr int kFetchLines = kTile * kRowBytes / NextBlock::kLineBytes / kFetches;

  FloatQueries(const float* query, int heads, float softmax_scale)
      : query_(query), heads_(heads), factor_(softmax_scale * kLog2E) {}

  /// As IntQueries::score(); the centroids' scale is 1.
  void score(const std::byte* centroids, const float*, int first, NextBlock& next, BlockScores* z) {
    const std::byte* rows = centroids + first * kRowBytes;
    next.fetch(kFetchLines);
    int g = 0;
    for (; g + kGroup <= heads_; g += kGroup) multiply<kGroup>(g, rows, first, z);
    for (; g < heads_; ++g) multiply<1>(g, rows, first, z);
  }

 private:
  static constexpr int kGroup = simd::kAccumulators < kTile ? 1 : simd::kAccumulators / kTile;

  template <int kHeads>
  CLUSTERKV_SIMD void multiply(int head, const std::byte* rows, int first, BlockScores* z) const {
    simd::Floats sum[kHeads][kTile];
    for (auto& of_head : sum) {
      for (simd::Floats& lanes : of_head) lanes = simd::broadcast(0.0F);
    }
    for (int d = 0; d < kHeadDim; d += simd::kLanes) {
      simd::Floats centroid[kTile];
      for (int c = 0; c < kTile; ++c) {
        centroid[c] = simd::load_row<kStored>(rows + c * kRowBytes + d * kElementBytes<kStored>);
      }
      for (int g = 0; g < kHeads; ++g) {
        const simd::Floats q = simd::load(query_ + (head + g) * kHeadDim + d);
        for (int c = 0; c < kTile; ++c) sum[g][c] = sum[g][c] + q * centroid[c];
      }
    }
    simd::Quad dot[kHeads][1];
    simd::tree_sums(sum, dot);
    for (int g = 0; g < kHeads; ++g) {
      const simd::Quad scores = dot[g][0] * factor_;
      std::memcpy(z[head + g] + first, &scores, sizeof scores);
    }
  }

  const float* query_;
  int heads_;
  float factor_;
};

/// 1/2 s^2 sum_d q_d^2 D_d of a query for one segment: dot_fixed() of the squares.
template <int kHeadDim>
float query_spread(const float* query, const float* profile, float scale) {
  simd::Floats sum = simd::broadcast(0.0F);
  for (int d = 0; d < kHeadDim; d += simd::kLanes) {
    const simd::Floats q = simd::load(query + d);
    sum = sum + (q * q) * simd::load(profile + d);
  }
  const simd::Quad folded = simd::fold(sum);
  return 0.5F * scale * scale * simd::finish(folded, folded, folded, folded)[0];
}

}  // namespace clusterkv::select::CLUSTERKV_ISA
