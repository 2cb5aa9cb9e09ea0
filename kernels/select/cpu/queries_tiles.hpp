// SPDX-License-Identifier: Apache-2.0
//
// z of clusters by matrix units: the integers of IntQueries, 16 clusters at a time. The planes of the queries
// stay in tiles while the clusters of all blocks pass.
#pragma once

#include "kernels/common/cpu/simd_tiles.hpp"
#include "kernels/select/cpu/queries.hpp"

#ifdef __AMX_INT8__

namespace clusterkv::select::CLUSTERKV_ISA {

template <int kHeadDim>
class TileQueries : IntQueries<kHeadDim> {
  using Base = IntQueries<kHeadDim>;

 public:
  static constexpr int kTile = simd::kTileRows;
  static constexpr int kRowBytes = kHeadDim;
  static constexpr int kFetches = 4;

  TileQueries(const float* query, int heads, float softmax_scale)
      : Base(query, heads, softmax_scale), shape_(simd::byte_tiles(kHeadDim)) {
    for (int d = 0; d < kHeadDim; ++d) {
      std::int8_t* row = planes_[d / 4] + d % 4;
      for (int g = 0; g < heads; ++g) {
        const int q = this->query_[g][d];
        const auto low = static_cast<std::int8_t>(q);  // q - low is a multiple of 256
        row[4 * g] = static_cast<std::int8_t>((q - low) / 256);
        row[4 * (num_halves() * kColumns / 4 + g)] = low;
      }
    }
    simd::load_right_tiles<kHeadDim>(planes_);
  }

  /// As IntQueries::score().
  void score(const std::byte* centroids, const float* centroid_scale, int first, NextBlock& next,
             BlockScores* z) const {
    next.fetch(kTile * kRowBytes / NextBlock::kLineBytes / kFetches);
    alignas(64) std::int32_t sums[kTile][kColumns];
    simd::multiply_bytes<kHeadDim>(centroids + std::size_t(first) * kHeadDim, sums);
    simd::IntPart of_head[2][kColumns / 2];
    for (int half = 0; half < num_halves(); ++half) simd::columns(sums, 8 * half, of_head[half]);
    const simd::IntPart* low = num_halves() == 1 ? of_head[0] + kColumns / 4 : of_head[1];
    simd::FloatSums scale;
    std::memcpy(&scale, centroid_scale + first, sizeof scale);
    for (int g = 0; g < this->heads_; ++g) {
      const simd::FloatSums scores =
          __builtin_convertvector(of_head[0][g] * 256 + low[g], simd::FloatSums) *
          (scale * this->factor_[g]);
      std::memcpy(z[g] + first, &scores, sizeof scores);
    }
  }

 private:
  static constexpr int kColumns = 16;
  static_assert(2 * kMaxPassHeads <= kColumns);
  /// Of eight columns: up to four heads need no more.
  [[nodiscard]] int num_halves() const { return this->heads_ <= kColumns / 4 ? 1 : 2; }

  alignas(64) std::int8_t planes_[(kHeadDim + 3) / 4][4 * kColumns] = {};
  simd::TileShape shape_;
};

}  // namespace clusterkv::select::CLUSTERKV_ISA

#endif
