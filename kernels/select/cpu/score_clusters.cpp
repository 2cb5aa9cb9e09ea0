// SPDX-License-Identifier: Apache-2.0
//
// score_clusters (stage 3, select). Contract and shapes: select/select.hpp.
//
// Mapping: one block of clusters at a time; a centroid is widened once for all heads of the group.
// Bound:   memory with int8 centroids, arithmetic with f32.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/common/dispatch.hpp"
#include "kernels/common/numeric.hpp"
#include "kernels/select/cpu/ops.hpp"
#include "kernels/select/rules.hpp"

namespace clusterkv::select::CLUSTERKV_ISA {
namespace {

/// The queries of up to kMaxPassHeads heads of a group, in the form the dot product takes.
template <IndexDType kIndex, int kHeadDim>
struct Queries {
  int count = 0;
  float factor[kMaxPassHeads];  ///< turns a dot product into z, without the centroid's scale
  const float* exact[kMaxPassHeads];
  alignas(64) std::int16_t q16[kMaxPassHeads][kHeadDim];

  Queries(const float* query, int heads, float softmax_scale) : count(heads) {
    for (int g = 0; g < heads; ++g) {
      exact[g] = query + g * kHeadDim;
      factor[g] = softmax_scale * kLog2E;
      if constexpr (kIndex == IndexDType::kInt8) quantise(g);
    }
  }

  void quantise(int g) {
    float max_abs = 0.0F;
    for (int d = 0; d < kHeadDim; ++d) {
      const float magnitude = std::abs(exact[g][d]);
      max_abs = magnitude > max_abs ? magnitude : max_abs;
    }
    const bool usable = max_abs > 0.0F && max_abs <= 3.4e38F;
    const float inverse = usable ? kQueryMax / max_abs : 0.0F;
    for (int d = 0; d < kHeadDim; ++d) q16[g][d] = quantise_query(exact[g][d], inverse);
    factor[g] = factor[g] * (usable ? max_abs / kQueryMax : 0.0F);
  }
};

/// Dot products of one centroid with every query, times the factors: z.
template <IndexDType kIndex, int kHeadDim>
void score_centroid(const Queries<kIndex, kHeadDim>& queries, const std::byte* centroid,
                    float centroid_scale, float* z) {
  if constexpr (kIndex == IndexDType::kInt8) {
    alignas(64) std::int16_t wide[kHeadDim];
    const auto* narrow = reinterpret_cast<const std::int8_t*>(centroid);
    for (int d = 0; d < kHeadDim; ++d) wide[d] = narrow[d];
    for (int g = 0; g < queries.count; ++g) {
      std::int32_t sum = 0;
      for (int d = 0; d < kHeadDim; ++d) sum += std::int32_t{queries.q16[g][d]} * wide[d];
      z[g] = static_cast<float>(sum) * (centroid_scale * queries.factor[g]);
    }
  } else {
    constexpr DType kStored = kIndex == IndexDType::kBF16 ? DType::kBF16 : DType::kF32;
    alignas(64) float wide[kHeadDim];
    load_elements<kStored>(centroid, kHeadDim, wide);
    for (int g = 0; g < queries.count; ++g) {
      z[g] = dot_fixed<kHeadDim>(queries.exact[g], wide) * queries.factor[g];
    }
  }
}

/// 1/2 s^2 sum_d q_d^2 D_d of every query for one segment.
template <int kHeadDim>
void query_spreads(const float* const* queries, int count, const float* profile, float scale,
                   float* out) {
  for (int g = 0; g < count; ++g) {
    float squared[kHeadDim];
    for (int d = 0; d < kHeadDim; ++d) squared[d] = queries[g][d] * queries[g][d];
    out[g] = 0.5F * scale * scale * dot_fixed<kHeadDim>(squared, profile);
  }
}

/// e and sums of one head over one block.
BlockSums finish_block(const float* t, const std::int32_t* size, float* e) {
  float max = kMinusInfinity;
  for (int c = 0; c < kBlockClusters; ++c) max = size[c] > 0 && t[c] > max ? t[c] : max;
  float sum[kBlockPartials] = {};
  float mass[kBlockPartials] = {};
  if (max == kMinusInfinity) {
    std::fill(e, e + kBlockClusters, 0.0F);
    return {max, 0.0F, 0.0F};
  }
  for (int c = 0; c < kBlockClusters; ++c) e[c] = size[c] > 0 ? exp2_fixed(t[c] - max) : 0.0F;
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
        group_(p.rows[item.row].group(p.num_q_heads, p.num_kv_heads)),
        first_head_(first_head),
        queries_(p.query + (std::int64_t{p.rows[item.row].query_row} * p.num_q_heads +
                            item.kv_head * group_ + first_head) *
                               kHeadDim,
                 heads, p.softmax_scale) {}

  void run() {
    const SequenceView& row = p_.rows[item_.row];
    for (int s = 0; s < row.num_segments; ++s) {
      const SegmentView& segment = row.segments[s];
      const int first = std::max(item_.first_block, segment.first_block);
      const int last = std::min(item_.last_block, segment.first_block + segment.num_blocks);
      if (first >= last) continue;
      if (p_.use_spread) {
        query_spreads<kHeadDim>(queries_.exact, queries_.count,
                                p_.index.record_profile(item_.kv_head, segment.record),
                                p_.softmax_scale, query_spread_);
      }
      for (int block = first; block < last; ++block) score_block(row, block);
    }
  }

 private:
  void score_block(const SequenceView& row, int block) {
    const std::uint32_t physical = row.blocks[block];
    const std::uint32_t* offset = p_.index.block_offset(item_.kv_head, physical);
    for (int c = 0; c < kBlockClusters; ++c) {
      size_[c] = static_cast<std::int32_t>(offset[c + 1] - offset[c]);
    }
    score_centroids(row, block, physical);
    const RowScores& out = p_.scores[item_.row];
    const std::int64_t first = std::int64_t{item_.kv_head} * row.num_blocks + block;
    for (int g = 0; g < queries_.count; ++g) {
      float e[kBlockClusters];
      out.blocks[first * group_ + first_head_ + g] = finish_block(t_[g], size_, e);
      float* to = out.e + first * kBlockClusters * group_ + first_head_ + g;
      for (int c = 0; c < kBlockClusters; ++c) to[c * group_] = e[c];
    }
  }

  void score_centroids(const SequenceView& row, int block, std::uint32_t physical) {
    const std::byte* centroids = p_.index.block_centroids(item_.kv_head, physical);
    const std::int64_t entry = p_.index.plane_block(item_.kv_head, physical) * kBlockClusters;
    float* const z_out = p_.scores[item_.row].z;
    const std::int64_t first = std::int64_t{item_.kv_head} * row.num_blocks + block;
    for (int c = 0; c < kBlockClusters; ++c) {
      float z[kMaxPassHeads] = {};
      if (size_[c] > 0) {
        score_centroid<kIndex, kHeadDim>(queries_, centroids, p_.index.centroid_scale[entry + c],
                                         z);
      }
      centroids += kHeadDim * IndexStore::element_bytes(kIndex);
      for (int g = 0; g < queries_.count; ++g) {
        const float w =
            p_.use_spread ? spread_weight(p_.index.spread[entry + c], query_spread_[g]) : 0.0F;
        t_[g][c] = p_.use_spread ? score(z[g], w) : z[g];
        if (z_out != nullptr) z_out[(first * kBlockClusters + c) * group_ + first_head_ + g] = z[g];
      }
    }
  }

  const ScoreParams& p_;
  const ScoreItem& item_;
  int group_;
  int first_head_;
  Queries<kIndex, kHeadDim> queries_;
  float query_spread_[kMaxPassHeads] = {};
  std::int32_t size_[kBlockClusters];
  float t_[kMaxPassHeads][kBlockClusters];
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
