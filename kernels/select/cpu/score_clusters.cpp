// SPDX-License-Identifier: Apache-2.0
//
// score_clusters (stage 3, select). Contract and shapes: select/select.hpp.
//
// Mapping: four clusters of a block at a time, against four heads of the group where registers allow.
//          A block's scores stay in the L1 cache until its sums are formed.
// Bound:   memory with an int8 index, arithmetic with others.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/common/cpu/simd.hpp"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/numeric.hpp"
#include "kernels/select/cpu/ops.hpp"
#include "kernels/select/rules.hpp"

namespace clusterkv::select::CLUSTERKV_ISA {
namespace {

/// Clusters, and heads, whose products are finished at once; clusters whose sums are in registers.
constexpr int kTile = 4;
constexpr int kTileHeads = 4;
constexpr int kFlight = simd::kParts == 1 ? 4 : 2;
using BlockScores = float[kBlockClusters];

/// The queries of a pass as two int8 planes in one 16-bit integer: products with int8 centroids are
/// integer sums.
template <int kHeadDim>
class IntQueries {
 public:
  IntQueries(const float* query, int heads, float softmax_scale) : heads_(heads) {
    for (int g = 0; g < heads; ++g) quantise(g, query + g * kHeadDim, softmax_scale * kLog2E);
  }

  /// z of clusters [first, first + kTile) of a block, for every head.
  void score(const std::byte* centroids, const float* centroid_scale, int first, BlockScores* z) {
    const auto* rows = reinterpret_cast<const std::int8_t*>(centroids) + first * kHeadDim;
    simd::Quad scale;
    std::memcpy(&scale, centroid_scale + first, sizeof scale);
    int g = 0;
    for (; g + kTileHeads <= heads_; g += kTileHeads)
      multiply<kTileHeads>(g, rows, scale, first, z);
    for (; g < heads_; ++g) multiply<1>(g, rows, scale, first, z);
  }

 private:
  static constexpr int kStep = simd::kWordLanes;
  static constexpr int kWords = (kHeadDim + kStep - 1) / kStep * kStep;

  void quantise(int g, const float* query, float scale) {
    float max_abs = 0.0F;
    for (int d = 0; d < kHeadDim; ++d) {
      const float magnitude = std::abs(query[d]);
      max_abs = magnitude > max_abs ? magnitude : max_abs;
    }
    const bool usable = max_abs > 0.0F && max_abs <= 3.4e38F;
    const float inverse = usable ? kQueryMax / max_abs : 0.0F;
    for (int d = 0; d < kHeadDim; ++d) query_[g][d] = quantise_query(query[d], inverse);
    factor_[g] = scale * (usable ? max_abs / kQueryMax : 0.0F);
  }

  template <int kGroup>
  CLUSTERKV_SIMD void multiply(int head, const std::int8_t* rows, const simd::Quad& scale,
                               int first, BlockScores* z) const {
    simd::IntPart sum[kGroup][kTile];
    for (int c = 0; c < kTile; c += kFlight) add_products(head, rows, c, sum);
    simd::IntQuad dot[kGroup][1];
    simd::tree_sums(sum, dot);
    for (int g = 0; g < kGroup; ++g) {
      const simd::Quad scores =
          __builtin_convertvector(dot[g][0], simd::Quad) * (scale * factor_[head + g]);
      std::memcpy(z[head + g] + first, &scores, sizeof scores);
    }
  }

  /// Of clusters [c, c + kFlight).
  template <int kGroup>
  CLUSTERKV_SIMD void add_products(int head, const std::int8_t* rows, int c,
                                   simd::IntPart (&sum)[kGroup][kTile]) const {
    simd::IntPart lanes[kGroup][kFlight] = {};
#pragma GCC unroll 1
    for (int d = 0; d < kWords; d += kStep) {
      simd::Words centroid[kFlight];
      for (int i = 0; i < kFlight; ++i) {
        const std::int8_t* bytes = rows + (c + i) * kHeadDim + d;
        centroid[i] = d + kStep <= kHeadDim ? simd::widen_bytes<kStep>(bytes)
                                            : simd::widen_bytes<kHeadDim % kStep>(bytes);
      }
      for (int g = 0; g < kGroup; ++g) {
        const simd::Words q = simd::load_words(query_[head + g] + d);
        for (int i = 0; i < kFlight; ++i) {
          lanes[g][i] = simd::dot_words(lanes[g][i], centroid[i], q);
        }
      }
    }
    for (int g = 0; g < kGroup; ++g) {
      for (int i = 0; i < kFlight; ++i) sum[g][c + i] = lanes[g][i];
    }
  }

  int heads_;
  float factor_[kMaxPassHeads];  ///< turns a product into z, without the centroid's scale
  alignas(64) std::int16_t query_[kMaxPassHeads][kWords] = {};
};

/// The queries of a pass for centroids of floating point: sums in the order of dot_fixed().
template <DType kStored, int kHeadDim>
class FloatQueries {
 public:
  FloatQueries(const float* query, int heads, float softmax_scale)
      : query_(query), heads_(heads), factor_(softmax_scale * kLog2E) {}

  /// As IntQueries::score(); the centroids' scale is 1.
  void score(const std::byte* centroids, const float*, int first, BlockScores* z) {
    const std::byte* rows = centroids + first * kRowBytes;
    int g = 0;
    for (; g + kGroup <= heads_; g += kGroup) multiply<kGroup>(g, rows, first, z);
    for (; g < heads_; ++g) multiply<1>(g, rows, first, z);
  }

 private:
  static constexpr int kGroup = simd::kAccumulators < kTile ? 1 : simd::kAccumulators / kTile;
  static constexpr int kRowBytes = kHeadDim * kElementBytes<kStored>;

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

template <IndexDType kIndex, int kHeadDim>
struct QueriesFor {
  using Type = FloatQueries<kIndex == IndexDType::kBF16 ? DType::kBF16 : DType::kF32, kHeadDim>;
};
template <int kHeadDim>
struct QueriesFor<IndexDType::kInt8, kHeadDim> {
  using Type = IntQueries<kHeadDim>;
};

/// 1/2 s^2 sum_d q_d^2 D_d of a query for one segment.
template <int kHeadDim>
float query_spread(const float* query, const float* profile, float scale) {
  float squared[kHeadDim];
  for (int d = 0; d < kHeadDim; ++d) squared[d] = query[d] * query[d];
  return 0.5F * scale * scale * dot_fixed<kHeadDim>(squared, profile);
}

/// e and sums of one head over one block.
BlockSums finish_block(const float* t, const std::int32_t* size, float* e) {
  float masked[kBlockClusters];
  for (int c = 0; c < kBlockClusters; ++c) masked[c] = size[c] > 0 ? t[c] : kMinusInfinity;
  simd::Floats largest = simd::broadcast(kMinusInfinity);
  for (int c = 0; c < kBlockClusters; c += simd::kLanes) {
    largest = simd::max(simd::load(masked + c), largest);
  }
  const float max = simd::max(largest);
  if (max == kMinusInfinity) {
    std::fill(e, e + kBlockClusters, 0.0F);
    return {max, 0.0F, 0.0F};
  }
  for (int c = 0; c < kBlockClusters; c += simd::kLanes) {
    simd::store(simd::exp2_fixed(simd::load(masked + c) - simd::broadcast(max)), e + c);
  }
  float sum[kBlockPartials] = {};
  float mass[kBlockPartials] = {};
  for (int first = 0; first < kBlockClusters; first += kBlockPartials) {
    for (int i = 0; i < kBlockPartials; ++i) {
      sum[i] = sum[i] + e[first + i];
      mass[i] = mass[i] + static_cast<float>(size[first + i]) * e[first + i];
    }
  }
  return {max, tree_sum<kBlockPartials>(sum), tree_sum<kBlockPartials>(mass)};
}

template <IndexDType kIndex, int kHeadDim>
class Scorer {
 public:
  Scorer(const ScoreParams& p, const ScoreItem& item, int first_head, int heads)
      : p_(p),
        item_(item),
        row_(p.rows[item.row]),
        group_(row_.group(p.num_q_heads, p.num_kv_heads)),
        first_head_(first_head),
        heads_(heads),
        query_(p.query +
               (std::int64_t{row_.query_row} * p.num_q_heads + item.kv_head * group_ + first_head) *
                   kHeadDim),
        queries_(query_, heads, p.softmax_scale) {}

  void run() {
    for (int s = 0; s < row_.num_segments; ++s) {
      const SegmentView& segment = row_.segments[s];
      const int first = std::max(item_.first_block, segment.first_block);
      const int last = std::min(item_.last_block, segment.first_block + segment.num_blocks);
      if (first >= last) continue;
      const float* profile = p_.index.record_profile(item_.kv_head, segment.record);
      for (int g = 0; g < heads_ && p_.use_spread; ++g) {
        query_spread_[g] = query_spread<kHeadDim>(query_ + g * kHeadDim, profile, p_.softmax_scale);
      }
      for (int block = first; block < last; ++block) score_block(block);
    }
  }

 private:
  void score_block(int block) {
    const std::uint32_t physical = row_.blocks[block];
    const std::uint32_t* offset = p_.index.block_offset(item_.kv_head, physical);
    for (int c = 0; c < kBlockClusters; ++c) {
      size_[c] = static_cast<std::int32_t>(offset[c + 1] - offset[c]);
    }
    const std::int64_t entry = p_.index.plane_block(item_.kv_head, physical) * kBlockClusters;
    const std::byte* centroids = p_.index.block_centroids(item_.kv_head, physical);
    for (int c = 0; c < num_used(); c += kTile) {
      queries_.score(centroids, p_.index.centroid_scale + entry, c, z_);
    }
    const std::int64_t at = std::int64_t{item_.kv_head} * row_.num_blocks + block;
    for (int g = 0; g < heads_; ++g) {
      finish(g, p_.index.spread + entry, at * group_ + first_head_ + g);
    }
  }

  /// Unused clusters come last, and nothing was written for them.
  int num_used() const {
    int used = kBlockClusters;
    while (used > 0 && size_[used - 1] == 0) --used;
    return used;
  }

  void finish(int g, const float* spread, std::int64_t at) {
    const RowScores& out = p_.scores[item_.row];
    float* z = z_[g];
    for (int c = 0; c < kBlockClusters; ++c) z[c] = size_[c] > 0 ? z[c] : 0.0F;
    if (out.z != nullptr) std::copy(z, z + kBlockClusters, out.z + at * kBlockClusters);
    if (p_.use_spread) {
      const float query_spread = query_spread_[g];
      // score() and spread_weight(), which are of single numbers.
      for (int c = 0; c < kBlockClusters; c += simd::kLanes) {
        const simd::Floats w = simd::load(spread + c) * simd::broadcast(query_spread);
        simd::store(simd::load(z + c) + simd::log2_1p_fixed(w), z + c);
      }
    }
    out.blocks[at] = finish_block(z, size_, out.e + at * kBlockClusters);
  }

  const ScoreParams& p_;
  const ScoreItem& item_;
  const SequenceView& row_;
  int group_;
  int first_head_;
  int heads_;
  const float* query_;
  typename QueriesFor<kIndex, kHeadDim>::Type queries_;
  float query_spread_[kMaxPassHeads];
  alignas(64) std::int32_t size_[kBlockClusters];
  alignas(64) BlockScores z_[kMaxPassHeads] = {};
};

}  // namespace

void score_clusters(const ScoreParams& p, const ScoreItem& item) {
  const int group = p.rows[item.row].group(p.num_q_heads, p.num_kv_heads);
  dispatch_value<IndexDType::kInt8, IndexDType::kBF16, IndexDType::kF32>(
      "index_dtype", p.index.dtype, [&](auto index) {
        dispatch_head_dim(p.index.head_dim, [&](auto head_dim) {
          for (int first = 0; first < group; first += kMaxPassHeads) {
            const int heads = std::min(kMaxPassHeads, group - first);
            Scorer<index.value, head_dim.value>(p, item, first, heads).run();
          }
        });
      });
}

}  // namespace clusterkv::select::CLUSTERKV_ISA
