// SPDX-License-Identifier: Apache-2.0
//
// attend_tail (stage 5, attend). Contract and shapes: attend/attend.hpp.
//
// Mapping: of most blocks no head keeps a cluster, as their sums show: all their mass goes to the rest. Of
//          others, masses of clusters, a head at a time; then the value means of those that some head
//          keeps, which are few, for all heads. What a block keeps is found while the block before it
//          waits to be added, so that its value means are in cache by then.
// Bound:   the scores of the blocks that are left, and the value means of kept clusters.
#include <algorithm>
#include <bit>

#include "kernels/attend/cpu/ops.hpp"
#include "kernels/attend/cpu/weighted_sum.hpp"
#include "kernels/common/cpu/simd.hpp"
#include "kernels/common/cpu/simd_select.hpp"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/math.hpp"

namespace clusterkv::attend::CLUSTERKV_ISA {
namespace {

/// How value means are stored.
template <IndexDType kIndex>
struct ValueMean {
  static constexpr DType kStored = kIndex == IndexDType::kBF16 ? DType::kBF16 : DType::kF32;
  static constexpr int kBytes = kElementBytes<kStored>;
  static simd::Floats load(const std::byte* from) { return simd::load_row<kStored>(from); }
};
template <>
struct ValueMean<IndexDType::kInt8> {
  static constexpr int kBytes = 1;
  static simd::Floats load(const std::byte* from) { return simd::load_bytes(from); }
};

template <IndexDType kIndex, int kValueDim>
class TailPiece {
 public:
  TailPiece(const AttendParams& p, int row, int head, int piece)
      : p_(p),
        row_(p.rows[row]),
        number_(row),
        served_(num_served(p, row)),
        first_q_head_(head * served_),
        group_(row_.group(p.num_q_heads, p.num_kv_heads)),
        kv_head_(first_q_head_ / group_),
        member_(first_q_head_ % group_),
        piece_(num_row_pieces(num_attended_rows(p, row, head), kCpuPieceRows) + piece),
        chosen_(p.lists.clusters_of(row, head)),
        counts_(p.lists.counts_of(row, head)),
        chosen_end_(chosen_ + p.lists.num_clusters[p.lists.list(row, head)]) {
    const int step = blocks_per_piece(row_.num_blocks);
    first_block_ = piece * step;
    last_block_ = std::min(row_.num_blocks, first_block_ + step);
  }

  void run() {
    for (int g = 0; g < served_; ++g) {
      partial(g) = {total(g).max, 0.0F, 0.0F, 0};
      std::fill(output(g), output(g) + kValueDim, 0.0F);
    }
    // Ids are ascending, so the piece's part of the choice is one run.
    const std::int32_t* next =
        std::lower_bound(chosen_, chosen_end_, first_block_ * kBlockClusters);
    Block blocks[2];
    int found = 0;
    for (int strip = first_block_; strip < last_block_; strip += simd::kLanes) {
      for (unsigned left = add_small_blocks(strip, next); left != 0; left &= left - 1) {
        find_block(strip + std::countr_zero(left), next, blocks[found % 2]);
        if (found > 0) add_block(blocks[(found - 1) % 2]);
        ++found;
      }
    }
    if (found > 0) add_block(blocks[(found - 1) % 2]);
  }

 private:
  PartialHead& partial(int g) { return p_.partials.head(number_, first_q_head_ + g, piece_); }
  float* output(int g) { return p_.partials.output(number_, first_q_head_ + g, piece_); }
  const HeadTotals& total(int g) const {
    return p_.totals[std::int64_t{number_} * p_.num_q_heads * p_.query_tokens + first_q_head_ + g];
  }

  /// A block's rows that were not selected, and the value means that some head keeps.
  struct Block {
    std::int64_t scores;  ///< of the first head served
    const float* scale;
    std::uint64_t kept;
    int count;
    const std::byte* means[kBlockClusters];
    alignas(64) float left[kBlockClusters];
  };

  /// In p.scores, of the first head served.
  [[nodiscard]] std::int64_t scores_of(int number) const {
    return (std::int64_t{kv_head_} * row_.num_blocks + number) * group_ + member_;
  }

  /// Some 16 blocks: those without chosen clusters, of which no head keeps one, go to the rest of each head.
  /// Returns a bit for each of the others.
  unsigned add_small_blocks(int strip, const std::int32_t* next) {
    const int count = std::min(simd::kLanes, last_block_ - strip);
    unsigned left = 0;
    for (; next < chosen_end_ && *next < (strip + count) * kBlockClusters; ++next) {
      left |= 1U << (*next / kBlockClusters - strip);
    }
    for (int g = 0; g < served_; ++g) {
      const simd::Floats mass =
          sums(strip, count, g, &BlockSums::max_mass) * factors(strip, count, g);
      left |= simd::at_least(mass, simd::broadcast(p_.tail_share * total(g).mass));
    }
    const unsigned all = (1U << count) - 1;
    for (int g = 0; g < served_ && (left & all) != all; ++g) {
      const simd::Floats mass =
          sums(strip, count, g, &BlockSums::mass_sum) * factors(strip, count, g);
      const simd::Quad rest = simd::fold(simd::only(~left & all, mass));
      partial(g).rest += simd::finish(rest, rest, rest, rest)[0];
    }
    return left & all;
  }

  /// A sum of each block of a strip, 0 beyond `count`.
  [[nodiscard]] simd::Floats sums(int strip, int count, int g, float BlockSums::*sum) const {
    const BlockSums* blocks = p_.scores[number_].blocks + scores_of(strip) + g;
    float of_block[simd::kLanes] = {};
    for (int i = 0; i < count; ++i) of_block[i] = blocks[std::int64_t{i} * group_].*sum;
    return simd::load(of_block);
  }

  /// 2^(max of the block - max of all), of a strip.
  [[nodiscard]] simd::Floats factors(int strip, int count, int g) const {
    return simd::exp2_fixed(sums(strip, count, g, &BlockSums::max) - simd::broadcast(total(g).max));
  }

  void find_block(int number, const std::int32_t*& next, Block& block) const {
    const std::uint32_t physical = row_.blocks[number];
    const std::uint32_t* offset = p_.index.block_offset(kv_head_, physical);
    alignas(64) float size[kBlockClusters];
    for (int c = 0; c < kBlockClusters; c += simd::kLanes) {
      const simd::Floats rows = simd::differences(offset + c);
      simd::store(rows, size + c);
      simd::store(rows, block.left + c);
    }
    for (; next < chosen_end_ && *next < (number + 1) * kBlockClusters; ++next) {
      block.left[*next % kBlockClusters] -= static_cast<float>(counts_[next - chosen_]);
    }
    block.scores = scores_of(number);
    block.scale = p_.index.value_scale + p_.index.plane_block(kv_head_, physical) * kBlockClusters;
    block.kept = 0;
    for (int first = 0; first < served_; first += simd::kLanes) {
      block.kept |= find_kept(block, size, first, std::min(simd::kLanes, served_ - first));
    }
    fetch(p_.index.block_value_means(kv_head_, physical), block);
  }

  /// 2^(max of the block - max of all), for heads [first, first + heads) of at most kLanes.
  CLUSTERKV_SIMD void find_factors(const Block& block, int first, int heads,
                                   float (&factor)[simd::kLanes]) const {
    alignas(64) float x[simd::kLanes] = {};
    for (int g = 0; g < heads; ++g) {
      x[g] = p_.scores[number_].blocks[block.scores + first + g].max - total(first + g).max;
    }
    simd::store(simd::exp2_fixed(simd::load(x)), factor);
  }

  /// A bit for each cluster with rows left that one of the heads keeps: is_kept().
  std::uint64_t find_kept(const Block& block, const float* size, int first, int heads) const {
    alignas(64) float factor[simd::kLanes];
    find_factors(block, first, heads, factor);
    std::uint64_t bits = 0;
#pragma GCC unroll 1
    for (int c = 0; c < kBlockClusters; c += simd::kLanes) {
      unsigned kept = 0;
      for (int g = 0; g < heads; ++g) {
        const simd::Floats mass =
            simd::load(size + c) * simd::load(e(block, first + g) + c) * simd::broadcast(factor[g]);
        kept |= simd::at_least(mass, simd::broadcast(p_.tail_share * total(first + g).mass));
      }
      kept &= simd::at_least(simd::load(block.left + c), simd::broadcast(1.0F));
      bits |= std::uint64_t{kept} << c;
    }
    return bits;
  }

  static void fetch(const std::byte* means, Block& block) {
    constexpr int kRowBytes = kValueDim * ValueMean<kIndex>::kBytes;
    constexpr int kLineBytes = 64;
    block.count = 0;
    for (std::uint64_t bits = block.kept; bits != 0; bits &= bits - 1) {
      const std::byte* mean = means + std::countr_zero(bits) * kRowBytes;
      for (int at = 0; at < kRowBytes; at += kLineBytes) simd::prefetch(mean + at);
      block.means[block.count++] = mean;
    }
  }

  void add_block(const Block& block) {
    partial(0).kept += block.count;
    for (int first = 0; first < served_; first += kMaxPassHeads) {
      const int heads = std::min(kMaxPassHeads, served_ - first);
      alignas(64) float factor[simd::kLanes];
      find_factors(block, first, heads, factor);
      float weight[kMaxPassHeads][kBlockClusters + simd::kLanes];
      float* o[kMaxPassHeads];
      for (int g = 0; g < heads; ++g) {
        weigh(block, first + g, factor[g], weight[g]);
        o[g] = output(first + g);
      }
      add_weighted<ValueMean<kIndex>>(FixedDim<kValueDim>{}, block.means, block.count, weight,
                                      heads, o);
    }
  }

  /// Head g: masses of the clusters that are kept become weights, side by side; those of others go to
  /// `rest`.
  CLUSTERKV_SIMD void weigh(const Block& block, int g, float factor, float* weight) {
    simd::Floats kept = simd::broadcast(0.0F);
    simd::Floats rest = simd::broadcast(0.0F);
    for (int c = 0; c < kBlockClusters; c += simd::kLanes) {
      const auto bits = static_cast<std::uint16_t>(block.kept >> c);
      const simd::Floats mass =
          simd::load(block.left + c) * simd::load(e(block, g) + c) * simd::broadcast(factor);
      const simd::Floats of_kept = simd::only(bits, mass);
      kept = kept + of_kept;
      rest = rest + (mass - of_kept);
      simd::store_packed(bits, mass * simd::load(block.scale + c), weight);
      weight += std::popcount(bits);
    }
    const simd::Quad sums =
        simd::finish(simd::fold(kept), simd::fold(rest), simd::fold(kept), simd::fold(rest));
    partial(g).l += sums[0];
    partial(g).rest += sums[1];
  }

  const float* e(const Block& block, int g) const {
    return p_.scores[number_].e + (block.scores + g) * kBlockClusters;
  }

  const AttendParams& p_;
  const SequenceView& row_;
  int number_;
  int served_;
  int first_q_head_;
  int group_;
  int kv_head_;
  int member_;
  int piece_;
  const std::int32_t* chosen_;
  const std::int32_t* counts_;
  const std::int32_t* chosen_end_;
  int first_block_;
  int last_block_;
};

}  // namespace

void attend_tail(const AttendParams& p, int row, int head, int piece) {
  dispatch_value<IndexDType::kInt8, IndexDType::kBF16, IndexDType::kF32>(
      "index_dtype", p.index.dtype, [&](auto index) {
        dispatch_head_dim(p.index.value_dim, [&](auto value_dim) {
          TailPiece<index.value, value_dim.value>(p, row, head, piece).run();
        });
      });
}

}  // namespace clusterkv::attend::CLUSTERKV_ISA
