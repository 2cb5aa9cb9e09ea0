// SPDX-License-Identifier: Apache-2.0
//
// Scores of some keys against all clusters in vectors, and the best of each (stage 1, cluster).
//
// Mapping: kBlock keys, widened once, against as many panels of centroids as registers hold sums for.
//          A panel stays in the L1 cache while the block's keys pass. The dot product of a pair is summed
//          over head_dim in order, so tiles do not change a bit.
// Bound:   fused multiply-adds. The running maximum of a lane stands for a column of the panels; lanes
//          are compared at the end.
#pragma once

#include <cstring>

#include "kernels/cluster/cpu/ops.hpp"
#include "kernels/cluster/rules.hpp"
#include "kernels/common/cpu/simd.hpp"

namespace clusterkv::cluster::CLUSTERKV_ISA {

static_assert(kPanel == simd::kLanes);
inline constexpr int kBlock = 48;
/// Sums in registers: 8 x 3, 6 x 2 and 3 x 4 of them with 32, 16 and 16 registers.
inline constexpr int kKeys = simd::kParts == 1 ? 8 : (simd::kParts == 2 ? 6 : 3);
inline constexpr int kPanels = simd::kParts == 1 ? 3 : 1;
static_assert(kBlock % kKeys == 0);

/// Of one key, by lane: the best score and the first cluster of its panel.
struct Best {
  simd::Floats score = simd::broadcast(kMinusInfinity);
  simd::Ints panel = {};

  CLUSTERKV_SIMD void offer(const simd::Floats& other, int first) {
    for (int i = 0; i < simd::kParts; ++i) {
      const auto better = other.part[i] > score.part[i];  // is_better()
      score.part[i] = better ? other.part[i] : score.part[i];
      panel.part[i] = better ? simd::IntPart{} + first : panel.part[i];
    }
  }

  [[nodiscard]] std::int32_t label() const {
    float lane_score[kPanel];
    std::int32_t lane_first[kPanel];
    simd::store(score, lane_score);
    std::memcpy(lane_first, &panel, sizeof lane_first);
    float best = kMinusInfinity;
    std::int32_t found = 0;
    for (int i = 0; i < kPanel; ++i) {
      const std::int32_t cluster = lane_first[i] + i;
      const bool wins = lane_score[i] == best && best > kMinusInfinity && cluster < found;
      if (!is_better(lane_score[i], best) && !wins) continue;
      best = lane_score[i];
      found = cluster;
    }
    return found;
  }
};

template <int kHeadDim, int kCount>
void score_panels(const float (*keys)[kHeadDim], int count, const AssignParams& p, int first,
                  Best* best) {
  const float* panels = p.centroids + std::size_t(first) * kHeadDim;
  for (int key = 0; key < count; key += kKeys) {
    // In parts: sums of whole vectors would be kept in memory.
    simd::Part sum[kKeys][kCount][simd::kParts] = {};
#pragma GCC unroll 2
    for (int d = 0; d < kHeadDim; ++d) {
      simd::Floats centroid[kCount];
      for (int j = 0; j < kCount; ++j) {
        centroid[j] = simd::load(panels + (j * kHeadDim + d) * kPanel);
      }
      for (int i = 0; i < kKeys; ++i) {
        const simd::Part x = simd::broadcast(keys[key + i][d]).part[0];
        for (int j = 0; j < kCount; ++j) {
          for (int part = 0; part < simd::kParts; ++part) {
            sum[i][j][part] = simd::fma(x, centroid[j].part[part], sum[i][j][part]);
          }
        }
      }
    }
    for (int j = 0; j < kCount; ++j) {
      const simd::Floats bias = simd::load(p.bias + first + j * kPanel);
      for (int i = 0; i < kKeys; ++i) {
        simd::Floats score;
        for (int part = 0; part < simd::kParts; ++part) score.part[part] = sum[i][j][part];
        best[key + i].offer(score - bias, first + j * kPanel);
      }
    }
  }
}

template <int kHeadDim>
void assign_block(const AssignParams& p, const float (*keys)[kHeadDim], int count,
                  std::int32_t* labels) {
  Best best[kBlock];
  int first = 0;
  for (; first + kPanels * kPanel <= p.num_clusters; first += kPanels * kPanel) {
    score_panels<kHeadDim, kPanels>(keys, count, p, first, best);
  }
  for (; first < p.num_clusters; first += kPanel) {
    score_panels<kHeadDim, 1>(keys, count, p, first, best);
  }
  for (int i = 0; i < count; ++i) labels[i] = best[i].label();
}

template <DType kDType, int kHeadDim>
void widen(const KeyRun& run, int token, float* to) {
  const std::uint32_t row = paged_row(run.pages, run.first_row + token);
  const std::byte* key = run.store.row(run.kv_head, row);
  for (int d = 0; d < kHeadDim; d += simd::kLanes) {
    simd::store(simd::load_row<kDType>(key + d * kElementBytes<kDType>), to + d);
  }
}

}  // namespace clusterkv::cluster::CLUSTERKV_ISA
