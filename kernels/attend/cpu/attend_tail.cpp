// SPDX-License-Identifier: Apache-2.0
//
// attend_tail (stage 5, attend). Contract and shapes: attend/attend.hpp.
//
// Mapping: masses of a block's clusters, a head at a time; then the value means of those that some head
//          keeps, which are few, for all heads.
// Bound:   the scores, which are in cache, and the value means of kept clusters.
#include <algorithm>
#include <bit>

#include "kernels/attend/cpu/ops.hpp"
#include "kernels/attend/cpu/weighted_sum.hpp"
#include "kernels/common/cpu/simd.hpp"
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

template <IndexDType kIndex, int kHeadDim>
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
      std::fill(output(g), output(g) + kHeadDim, 0.0F);
    }
    // Ids are ascending, so the piece's part of the choice is one run.
    const std::int32_t* next =
        std::lower_bound(chosen_, chosen_end_, first_block_ * kBlockClusters);
    for (int block = first_block_; block < last_block_; ++block) add_block(block, next);
  }

 private:
  PartialHead& partial(int g) { return p_.partials.head(number_, first_q_head_ + g, piece_); }
  float* output(int g) { return p_.partials.output(number_, first_q_head_ + g, piece_); }
  const HeadTotals& total(int g) const {
    return p_.totals[std::int64_t{number_} * p_.num_q_heads * p_.query_tokens + first_q_head_ + g];
  }

  void add_block(int block, const std::int32_t*& next) {
    const std::uint32_t physical = row_.blocks[block];
    const std::uint32_t* offset = p_.index.block_offset(kv_head_, physical);
    float size[kBlockClusters];
    float left[kBlockClusters];
    for (int c = 0; c < kBlockClusters; ++c) {
      size[c] = static_cast<float>(static_cast<std::int32_t>(offset[c + 1] - offset[c]));
      left[c] = size[c];
    }
    for (; next < chosen_end_ && *next < (block + 1) * kBlockClusters; ++next) {
      left[*next % kBlockClusters] -= static_cast<float>(counts_[next - chosen_]);
    }
    const std::int64_t at = (std::int64_t{kv_head_} * row_.num_blocks + block) * group_ + member_;
    std::uint64_t kept = 0;
    for (int g = 0; g < served_; ++g) kept |= find_kept(g, at + g, size, left);
    const float* scale =
        p_.index.value_scale + p_.index.plane_block(kv_head_, physical) * kBlockClusters;
    Means means(p_.index.block_value_means(kv_head_, physical), kept);
    partial(0).kept += means.count;
    for (int first = 0; first < served_; first += kMaxPassHeads) {
      const int heads = std::min(kMaxPassHeads, served_ - first);
      float* o[kMaxPassHeads];
      for (int g = 0; g < heads; ++g) {
        weigh(first + g, at + first + g, left, scale, means, g);
        o[g] = output(first + g);
      }
      add_weighted<ValueMean<kIndex>, kHeadDim>(means.rows, means.count, means.weight, heads, o);
    }
  }

  /// The value means of the clusters with bits in `kept`, and a pass's weights for them.
  struct Means {
    static constexpr int kRowBytes = kHeadDim * ValueMean<kIndex>::kBytes;
    static constexpr int kLineBytes = 64;

    Means(const std::byte* first, std::uint64_t kept) {
      for (; kept != 0; kept &= kept - 1) {
        cluster[count] = std::countr_zero(kept);
        rows[count] = first + cluster[count] * kRowBytes;
        // They arrive while the masses are formed.
        for (int at = 0; at < kRowBytes; at += kLineBytes) simd::prefetch(rows[count] + at);
        ++count;
      }
    }
    int count = 0;
    int cluster[kBlockClusters];
    const std::byte* rows[kBlockClusters];
    float weight[kMaxPassHeads][kBlockClusters];
  };

  float factor(int g, std::int64_t at) const {
    return exp2_fixed(p_.scores[number_].blocks[at].max - total(g).max);
  }

  /// A bit for each cluster with rows left that head g keeps.
  std::uint64_t find_kept(int g, std::int64_t at, const float* size, const float* left) const {
    const float* e = p_.scores[number_].e + at * kBlockClusters;
    const float block_factor = factor(g, at);
    std::int32_t keeps[kBlockClusters];
    for (int c = 0; c < kBlockClusters; ++c) {
      const float mass = size[c] * e[c] * block_factor;
      keeps[c] = static_cast<int>(is_kept(mass, total(g).mass, p_.tail_share)) &
                 static_cast<int>(left[c] > 0.0F);  // no branch: a vector of them
    }
    std::uint64_t bits = 0;
    for (int c = 0; c < kBlockClusters; ++c) bits |= static_cast<std::uint64_t>(keeps[c]) << c;
    return bits;
  }

  /// Head g: masses of the clusters that are kept become weights in row `to`, those of others go to
  /// `rest`.
  void weigh(int g, std::int64_t at, const float* left, const float* scale, Means& means, int to) {
    const float* e = p_.scores[number_].e + at * kBlockClusters;
    const float block_factor = factor(g, at);
    float mass[kBlockClusters];
    for (int c = 0; c < kBlockClusters; ++c) mass[c] = left[c] * e[c] * block_factor;
    float kept = 0.0F;
    for (int i = 0; i < means.count; ++i) {
      const int c = means.cluster[i];
      kept += mass[c];
      means.weight[to][i] = mass[c] * scale[c];
      mass[c] = 0.0F;
    }
    float sum[kSumLanes] = {};
    for (int first = 0; first < kBlockClusters; first += kSumLanes) {
      for (int i = 0; i < kSumLanes; ++i) sum[i] += mass[first + i];
    }
    partial(g).l += kept;
    partial(g).rest += tree_sum<kSumLanes>(sum);
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
        dispatch_head_dim(p.index.head_dim, [&](auto head_dim) {
          TailPiece<index.value, head_dim.value>(p, row, head, piece).run();
        });
      });
}

}  // namespace clusterkv::attend::CLUSTERKV_ISA
