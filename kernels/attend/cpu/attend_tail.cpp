// SPDX-License-Identifier: Apache-2.0
//
// attend_tail (stage 5, attend). Contract and shapes: attend/attend.hpp.
//
// Mapping: masses of one cluster for all heads; its value mean is read only if a head keeps it.
// Bound:   the scores, which are in cache, and the value means of kept clusters.
#include <algorithm>

#include "kernels/attend/cpu/ops.hpp"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/math.hpp"
#include "kernels/common/numeric.hpp"

namespace clusterkv::attend::CLUSTERKV_ISA {
namespace {

template <IndexDType kIndex, int kHeadDim>
void load_value_mean(const std::byte* from, float scale, float* to) {
  if constexpr (kIndex == IndexDType::kInt8) {
    const auto* narrow = reinterpret_cast<const std::int8_t*>(from);
    for (int d = 0; d < kHeadDim; ++d) to[d] = static_cast<float>(narrow[d]) * scale;
  } else {
    constexpr DType kStored = kIndex == IndexDType::kBF16 ? DType::kBF16 : DType::kF32;
    load_elements<kStored>(from, kHeadDim, to);
  }
}

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
        piece_(num_row_pieces(num_attended_rows(p, row, head)) + piece),
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
    const RowScores& scores = p_.scores[number_];
    const std::int64_t at = std::int64_t{kv_head_} * row_.num_blocks + block;
    const std::uint32_t physical = row_.blocks[block];
    const std::uint32_t* offset = p_.index.block_offset(kv_head_, physical);
    const BlockSums* sums = scores.blocks + at * group_ + member_;
    const float* e = scores.e + at * kBlockClusters * group_ + member_;
    for (int c = 0; c < kBlockClusters; ++c, e += group_) {
      const auto size = static_cast<int>(offset[c + 1] - offset[c]);
      int taken = 0;
      if (next < chosen_end_ && *next == block * kBlockClusters + c) {
        taken = counts_[next - chosen_];
        ++next;
      }
      if (size > taken) add_cluster(physical, c, {size, taken}, e, sums);
    }
  }

  struct Rows {
    int size;
    int taken;
  };

  void add_cluster(std::uint32_t physical, int c, Rows rows, const float* e,
                   const BlockSums* sums) {
    bool kept = false;
    for (int g = 0; g < served_ && !kept; ++g) {
      const float mass =
          static_cast<float>(rows.size) * e[g] * exp2_fixed(sums[g].max - total(g).max);
      kept = is_kept(mass, total(g).mass, p_.tail_share);
    }
    alignas(64) float value[kHeadDim];
    if (kept) {
      const std::int64_t entry = p_.index.plane_block(kv_head_, physical) * kBlockClusters + c;
      const std::byte* from = p_.index.block_value_means(kv_head_, physical) +
                              std::size_t(c) * kHeadDim * IndexStore::element_bytes(kIndex);
      load_value_mean<kIndex, kHeadDim>(from, p_.index.value_scale[entry], value);
      ++partial(0).kept;
    }
    for (int g = 0; g < served_; ++g) {
      const float mass = static_cast<float>(rows.size - rows.taken) * e[g] *
                         exp2_fixed(sums[g].max - total(g).max);
      if (!kept) {
        partial(g).rest += mass;
        continue;
      }
      partial(g).l += mass;
      float* o = output(g);
      for (int d = 0; d < kHeadDim; ++d) o[d] += mass * value[d];
    }
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
