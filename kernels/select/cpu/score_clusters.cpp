// SPDX-License-Identifier: Apache-2.0
//
// score_clusters (stage 3, select). Contract and shapes: select/select.hpp.
//
// Mapping: a few clusters of a block at a time, against four heads of the group where registers allow, in the
//          order in which they lie: what fetches ahead of reads follows nothing else. A block's scores
//          stay in the L1 cache until its sums are formed, head by head; the next block is fetched
//          meanwhile.
// Bound:   memory with an int8 index, arithmetic with others.
#include <algorithm>

#include "kernels/common/cpu/simd.hpp"
#include "kernels/common/cpu/simd_select.hpp"
#include "kernels/common/dispatch.hpp"
#include "kernels/select/cpu/ops.hpp"
#include "kernels/select/cpu/queries_tiles.hpp"
#include "kernels/select/rules.hpp"

namespace clusterkv::select::CLUSTERKV_ISA {
namespace {

// Loops over a block are not unrolled: the constants of a polynomial would leave their registers.
static_assert(kBlockPartials == simd::kLanes);

template <IndexDType kIndex, int kHeadDim>
struct QueriesFor {
  using Type = FloatQueries<kIndex == IndexDType::kBF16 ? DType::kBF16 : DType::kF32, kHeadDim>;
};
template <int kHeadDim>
struct QueriesFor<IndexDType::kInt8, kHeadDim> {
#ifdef __AMX_INT8__
  using Type = TileQueries<kHeadDim>;
#else
  using Type = IntQueries<kHeadDim>;
#endif
};

/// Rows of the clusters of a block, as floats just as exact: there are fewer than 2^24.
struct BlockSizes {
  alignas(64) float rows[kBlockClusters];

  explicit BlockSizes(const std::uint32_t* offset) {
    for (int c = 0; c < kBlockClusters; c += simd::kLanes) {
      simd::store(simd::differences(offset + c), rows + c);
    }
  }
};

/// Of one head and block: what t is besides z.
struct Spreads {
  const float* of_clusters;  ///< null: w = 0
  float of_query;
  const Softcap& softcap;
};

/// cap_score(), which is of single numbers.
CLUSTERKV_SIMD void cap_scores(const Softcap& softcap, simd::Floats& z, simd::Floats& w) {
  const simd::Floats tanh = simd::tanh_fixed(z * simd::broadcast(softcap.inverse));
  const simd::Floats slope = simd::broadcast(1.0F) - tanh * tanh;
  const simd::Floats factor = slope * (slope - tanh * simd::broadcast(softcap.bend));
  z = simd::broadcast(softcap.cap) * tanh;
  w = w * simd::max(factor, simd::broadcast(0.0F));
}

/// t of one head over one block in place of z, -inf without rows, as score() and spread_weight() of single
/// numbers. Returns the largest of it.
template <bool kIsCapped>
CLUSTERKV_SIMD float finish_scores(const BlockSizes& sizes, const Spreads& spreads, float* z,
                                   float* z_out, NextBlock& next, int lines) {
  simd::Floats largest = simd::broadcast(kMinusInfinity);
#pragma GCC unroll 1
  for (int c = 0; c < kBlockClusters; c += simd::kLanes) {
    next.fetch(lines);
    const simd::Floats rows = simd::load(sizes.rows + c);
    simd::Floats t = simd::where_positive(rows, simd::load(z + c), simd::broadcast(0.0F));
    if (z_out != nullptr) simd::store(t, z_out + c);
    simd::Floats w = simd::broadcast(0.0F);
    if (spreads.of_clusters != nullptr) {
      w = simd::load(spreads.of_clusters + c) * simd::broadcast(spreads.of_query);
    }
    if constexpr (kIsCapped) cap_scores(spreads.softcap, t, w);
    if (spreads.of_clusters != nullptr) t = t + simd::log2_1p_fixed(w);
    t = simd::where_positive(rows, t, simd::broadcast(kMinusInfinity));
    simd::store(t, z + c);
    largest = simd::max(t, largest);
  }
  return simd::max(largest);
}

/// e and sums of one head over one block. Where no cluster has rows t - max is NaN, of which exp2_fixed()
/// makes 0.
CLUSTERKV_SIMD BlockSums finish_masses(const BlockSizes& sizes, const float* t, float max, float* e,
                                       NextBlock& next, int lines) {
  simd::Floats sum = simd::broadcast(0.0F);
  simd::Floats mass = simd::broadcast(0.0F);
  simd::Floats largest = simd::broadcast(0.0F);
#pragma GCC unroll 1
  for (int c = 0; c < kBlockClusters; c += simd::kLanes) {
    next.fetch(lines);
    const simd::Floats share = simd::exp2_fixed(simd::load(t + c) - simd::broadcast(max));
    simd::store(share, e + c);
    sum = sum + share;
    const simd::Floats of_rows = simd::load(sizes.rows + c) * share;
    mass = mass + of_rows;
    largest = simd::max(of_rows, largest);
  }
  const simd::Quad sums = simd::fold(sum);
  const simd::Quad masses = simd::fold(mass);
  const simd::Quad both = simd::finish(sums, masses, sums, masses);
  return {max, both[0], both[1], simd::max(largest)};
}

template <IndexDType kIndex, int kHeadDim>
class Scorer {
  using Queries = typename QueriesFor<kIndex, kHeadDim>::Type;

 public:
  Scorer(const ScoreParams& p, const ScoreItem& item, int first_head, int heads)
      : p_(p),
        item_(item),
        row_(p.rows[item.row]),
        out_(p.scores[item.row]),
        group_(row_.group(p.num_q_heads, p.num_kv_heads)),
        first_head_(first_head),
        heads_(heads),
        query_(p.query +
               (std::int64_t{row_.query_row} * p.num_q_heads + item.kv_head * group_ + first_head) *
                   kHeadDim),
        queries_(query_, heads, p.softmax_scale),
        softcap_(p.logit_softcap) {}

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
      for (int block = first; block < last; ++block) {
        score_block(block, std::min(block + 1, last - 1));
      }
    }
  }

 private:
  /// Fetches what belongs to block `after` meanwhile.
  void score_block(int block, int after) {
    NextBlock next = fetch_entries(row_.blocks[after]);
    const std::uint32_t physical = row_.blocks[block];
    const std::uint32_t* offset = p_.index.block_offset(item_.kv_head, physical);
    const BlockSizes sizes(offset);
    const std::int64_t entry = p_.index.plane_block(item_.kv_head, physical) * kBlockClusters;
    const std::byte* centroids = p_.index.block_centroids(item_.kv_head, physical);
    // Unused clusters come last, and nothing was written for them.
    const std::uint32_t end = offset[kBlockClusters];
    for (int c = 0; c < kBlockClusters && offset[c] < end; c += Queries::kTile) {
      queries_.score(centroids, p_.index.centroid_scale + entry, c, next, z_);
    }
    const float* spread = p_.use_spread ? p_.index.spread + entry : nullptr;
    const std::int64_t at =
        (std::int64_t{item_.kv_head} * row_.num_blocks + block) * group_ + first_head_;
    const int lines = kFinishLines / heads_;
    float max[kMaxPassHeads];
    // Maxima of all heads first, so that nothing waits for them.
    for (int g = 0; g < heads_; ++g) {
      float* z_out = out_.z == nullptr ? nullptr : out_.z + (at + g) * kBlockClusters;
      const Spreads spreads{spread, query_spread_[g], softcap_};
      max[g] = softcap_.is_on() ? finish_scores<true>(sizes, spreads, z_[g], z_out, next, lines)
                                : finish_scores<false>(sizes, spreads, z_[g], z_out, next, lines);
    }
    for (int g = 0; g < heads_; ++g) {
      out_.blocks[at + g] =
          finish_masses(sizes, z_[g], max[g], out_.e + (at + g) * kBlockClusters, next, lines);
    }
  }

  /// What products do not fetch of a block, over the two passes of a head, each of a vector of clusters at
  /// a time.
  static constexpr int kFinishLines = kBlockClusters * Queries::kRowBytes / NextBlock::kLineBytes /
                                      Queries::kFetches * (Queries::kFetches - 1) /
                                      (2 * kBlockClusters / simd::kLanes);

  /// What is read first of a block: one number a cluster.
  [[nodiscard]] NextBlock fetch_entries(std::uint32_t physical) const {
    const std::int64_t entry = p_.index.plane_block(item_.kv_head, physical) * kBlockClusters;
    const auto fetch = [](const auto* of_clusters) {
      constexpr std::size_t kBytes = kBlockClusters * sizeof *of_clusters;
      NextBlock(reinterpret_cast<const std::byte*>(of_clusters), kBytes)
          .fetch(kBytes / NextBlock::kLineBytes);
    };
    fetch(p_.index.block_offset(item_.kv_head, physical));
    fetch(p_.index.centroid_scale + entry);
    if (p_.use_spread) fetch(p_.index.spread + entry);
    return {p_.index.block_centroids(item_.kv_head, physical), p_.index.centroid_block_bytes()};
  }

  const ScoreParams& p_;
  const ScoreItem& item_;
  const SequenceView& row_;
  const RowScores& out_;
  int group_;
  int first_head_;
  int heads_;
  const float* query_;
  Queries queries_;
  Softcap softcap_;
  float query_spread_[kMaxPassHeads];
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
