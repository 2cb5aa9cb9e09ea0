// SPDX-License-Identifier: Apache-2.0
//
// select_clusters, expand_rows (stage 3, select). Contract and shapes: select/select.hpp.
//
// Mapping: one pass over the blocks keeps the clusters that may still be chosen: whenever those kept fill
//          the budget twice, the key at which it is full becomes the floor for all that follow. Blocks
//          whose sums alone show that they stay below it are passed over.
// Bound:   the scores of the blocks that are left, which come from the L2 cache.
#include <algorithm>
#include <bit>

#include "kernels/common/cpu/simd.hpp"
#include "kernels/select/cpu/ops.hpp"
#include "kernels/select/rules.hpp"

namespace clusterkv::select::CLUSTERKV_ISA {
namespace {

/// Blocks whose bounds are found together; clusters looked at together: most have none above the floor.
constexpr int kStrip = simd::kLanes;
constexpr int kStep = 16;

class Chooser {
 public:
  Chooser(const SelectParams& p, int row, int head, const SelectScratch& scratch)
      : p_(p),
        row_(p.rows[row]),
        scores_(p.scores[row]),
        group_(row_.group(p.num_q_heads, p.num_kv_heads)),
        per_query_head_(p.grouping == HeadGrouping::kPerQueryHead),
        kv_head_(per_query_head_ ? head / group_ : head),
        first_member_(per_query_head_ ? head % group_ : 0),
        members_(per_query_head_ ? 1 : group_),
        totals_(p.totals + std::int64_t{row} * p.num_q_heads * p.query_tokens + kv_head_ * group_),
        row_number_(row),
        head_(head),
        scratch_(scratch) {}

  void run() {
    if (row_.everything || row_.query_row < 0) {
      for (int g = 0; g < members_; ++g) totals_[first_member_ + g] = {kMinusInfinity, 0.0F, 0.0F};
      if (row_.query_row >= 0) keep_everything();
    } else {
      for (int g = first_member_; g < first_member_ + members_; ++g) {
        totals_[g] = combine_blocks(row_, scores_, kv_head_, group_, g);
      }
      keep_best();
    }
    emit();
  }

 private:
  [[nodiscard]] std::int64_t block_of_scores(int block, int member) const {
    return (std::int64_t{kv_head_} * row_.num_blocks + block) * group_ + member;
  }
  [[nodiscard]] const std::uint32_t* offset_of(int block) const {
    return p_.index.block_offset(kv_head_, row_.blocks[block]);
  }

  // ------------------------------------------------------------------------------------------ keys
  /// What no key of each block in a strip exceeds, as e is at most 1. Per query head sums know nothing of z.
  void bound_keys(int strip, std::uint32_t (&bound)[kStrip]) const {
    if (per_query_head_) {
      std::fill_n(bound, kStrip, ~0U);
      return;
    }
    simd::Floats votes = simd::broadcast(0.0F);
    for (int g = 0; g < members_; ++g) votes = votes + softmax_factors(strip, g);
    float most[kStrip];
    simd::store(votes, most);
    for (int i = 0; i < kStrip; ++i) bound[i] = vote_key(most[i]);
  }

  /// softmax_factor() of the blocks of a strip.
  [[nodiscard]] simd::Floats softmax_factors(int strip, int member) const {
    const HeadTotals& total = totals_[member];
    if (!(total.sum > 0.0F)) return simd::broadcast(0.0F);
    float block_max[kStrip];
    for (int i = 0; i < kStrip; ++i) {
      const bool exists = strip + i < row_.num_blocks;
      block_max[i] = exists ? scores_.blocks[block_of_scores(strip + i, member)].max : 0.0F;
    }
    return simd::exp2_fixed(simd::load(block_max) - simd::broadcast(total.max)) /
           simd::broadcast(total.sum);
  }

  /// Keys of the blocks of a strip that have a bit, [block in strip, cluster].
  void find_keys(int strip, unsigned blocks, std::uint32_t* keys) const {
    if (per_query_head_) {
      for (; blocks != 0; blocks &= blocks - 1) {
        const int i = std::countr_zero(blocks);
        const float* z = scores_.z + block_of_scores(strip + i, first_member_) * kBlockClusters;
        for (int c = 0; c < kBlockClusters; ++c) keys[i * kBlockClusters + c] = score_key(z[c]);
      }
      return;
    }
    // A vote is formed a pass of heads at a time: until the last it lies, as float bits, among the keys.
    for (int first = 0; first < members_; first += kMaxPassHeads) {
      const int heads = std::min(kMaxPassHeads, members_ - first);
      alignas(64) float factor[kMaxPassHeads][kStrip];
      for (int g = 0; g < heads; ++g) {
        simd::store(softmax_factors(strip, first + g), factor[g]);
      }
      for (unsigned left = blocks; left != 0; left &= left - 1) {
        const int i = std::countr_zero(left);
        add_votes(strip + i, first, heads, &factor[0][i], keys + i * kBlockClusters);
      }
    }
  }

  /// `factor` has kStrip numbers a head.
  void add_votes(int block, int first, int heads, const float* factor, std::uint32_t* keys) const {
    const float* e = scores_.e + block_of_scores(block, first) * kBlockClusters;
    for (int c = 0; c < kBlockClusters; c += simd::kLanes) {
      simd::Floats vote = first > 0 ? simd::load(keys + c) : simd::broadcast(0.0F);
      for (int g = 0; g < heads; ++g) {
        vote = vote + simd::load(e + g * kBlockClusters + c) * simd::broadcast(factor[g * kStrip]);
      }
      simd::store(vote, keys + c);
    }
    if (first + heads < members_) return;
    for (int c = 0; c < kBlockClusters; ++c) keys[c] = vote_key(std::bit_cast<float>(keys[c]));
  }

  // ------------------------------------------------------------------------ clusters that are kept
  void keep(std::uint32_t key, int id, int size) {
    scratch_.keys[kept_] = key;
    scratch_.ids[kept_] = id;
    scratch_.sizes[kept_] = size;
    kept_ += size > 0 ? 1 : 0;
    rows_ += size;
  }

  void keep_everything() {
    for (int block = 0; block < row_.num_blocks; ++block) {
      const std::uint32_t* offset = offset_of(block);
      for (int c = 0; c < kBlockClusters; ++c) {
        keep(0, block * kBlockClusters + c, static_cast<int>(offset[c + 1] - offset[c]));
      }
    }
  }

  void keep_best() {
    const std::int64_t budget = std::min<std::int64_t>(row_.budget_tokens, row_.num_stored);
    std::uint32_t floor = 0;  // of keys that may still be chosen
    full_ = budget;
    for (int strip = 0; strip < row_.num_blocks; strip += kStrip) {
      std::uint32_t bound[kStrip];
      bound_keys(strip, bound);
      unsigned blocks = 0;
      for (int i = 0; i < std::min(kStrip, row_.num_blocks - strip); ++i) {
        blocks |= static_cast<unsigned>(bound[i] >= floor) << i;
      }
      alignas(64) std::uint32_t keys[kStrip * kBlockClusters];
      find_keys(strip, blocks, keys);
      for (; blocks != 0; blocks &= blocks - 1) {
        const int i = std::countr_zero(blocks);
        floor = keep_best_of(strip + i, keys + i * kBlockClusters, budget, floor);
      }
    }
    if (rows_ > budget) drop_below_budget(budget);
  }

  /// Keeps the clusters of a block whose keys are at the floor or above. Returns what the floor is then.
  std::uint32_t keep_best_of(int block, const std::uint32_t* keys, std::int64_t budget,
                             std::uint32_t floor) {
    if (!any_from<kBlockClusters>(floor, keys)) return floor;
    const std::uint32_t* offset = offset_of(block);
    for (int c = 0; c < kBlockClusters; c += kStep) {
      if (!any_from<kStep>(floor, keys + c)) continue;
      for (int i = c; i < c + kStep; ++i) {
        const auto size = static_cast<int>(offset[i + 1] - offset[i]);
        if (keys[i] >= floor) keep(keys[i], block * kBlockClusters + i, size);
      }
      if (rows_ < full_ + budget) continue;
      // A later one with the same key comes after those kept.
      floor = drop_below_budget(budget) + 1;
      full_ = rows_;
    }
    return floor;
  }

  /// Whether one of kCount keys is at the floor or above.
  template <int kCount>
  [[nodiscard]] static bool any_from(std::uint32_t floor, const std::uint32_t* keys) {
    std::uint32_t above = 0;
    for (int i = 0; i < kCount; ++i) above |= static_cast<std::uint32_t>(keys[i] >= floor);
    return above != 0;
  }

  /// Leaves the choice among those kept; the last of it is trimmed. Returns its lowest key.
  std::uint32_t drop_below_budget(std::int64_t budget) {
    const std::uint32_t pivot = find_pivot(budget);
    std::int64_t left = budget;  // for those equal to the pivot
    for (int i = 0; i < kept_; ++i) left -= scratch_.keys[i] > pivot ? scratch_.sizes[i] : 0;
    const int before = kept_;
    kept_ = 0;
    rows_ = 0;
    for (int i = 0; i < before; ++i) {
      int size = scratch_.sizes[i];
      if (scratch_.keys[i] <= pivot) {
        size = scratch_.keys[i] == pivot ? trim(size, static_cast<int>(left)) : 0;
        left -= size;
      }
      keep(scratch_.keys[i], scratch_.ids[i], size);
    }
    return pivot;
  }

  /// The largest key at or above which those kept fill the budget: bit by bit, from the highest.
  [[nodiscard]] std::uint32_t find_pivot(std::int64_t budget) const {
    std::uint32_t pivot = 0;
    for (std::uint32_t bit = 1U << 31; bit != 0; bit >>= 1) {
      const std::uint32_t trial = pivot | bit;
      std::int32_t rows = 0;
      for (int i = 0; i < kept_; ++i) {  // without a branch, which compilers would keep
        rows += scratch_.sizes[i] & -static_cast<std::int32_t>(scratch_.keys[i] >= trial);
      }
      if (rows >= budget) pivot = trial;
    }
    return pivot;
  }

  void emit() {
    std::int32_t* ids = p_.lists.clusters_of(row_number_, head_);
    std::int32_t* counts = p_.lists.counts_of(row_number_, head_);
    const std::int64_t list = p_.lists.list(row_number_, head_);
    p_.lists.num_clusters[list] = kept_;
    p_.lists.num_rows[list] = static_cast<std::int32_t>(rows_);
    std::copy_n(scratch_.ids, kept_, ids);
    std::copy_n(scratch_.sizes, kept_, counts);
    std::fill(ids + kept_, ids + p_.lists.capacity, -1);
    std::fill(counts + kept_, counts + p_.lists.capacity, 0);
  }

  const SelectParams& p_;
  const SequenceView& row_;
  const RowScores& scores_;
  int group_;
  bool per_query_head_;
  int kv_head_;
  int first_member_;
  int members_;
  HeadTotals* totals_;
  int row_number_;
  int head_;
  const SelectScratch& scratch_;
  int kept_ = 0;
  std::int64_t rows_ = 0;  ///< of those kept
  std::int64_t full_ = 0;  ///< what it was when the floor was found
};

/// Sums of 16 blocks, each to its partial.
CLUSTERKV_SIMD void add_blocks(const BlockSums* blocks, float max, simd::Floats& sum,
                               simd::Floats& mass) {
  float part[3][simd::kLanes];
  for (int j = 0; j < simd::kLanes; ++j) {
    part[0][j] = blocks[j].max;
    part[1][j] = blocks[j].sum;
    part[2][j] = blocks[j].mass_sum;
  }
  const simd::Floats factor = simd::exp2_fixed(simd::load(part[0]) - simd::broadcast(max));
  sum = sum + simd::load(part[1]) * factor;
  mass = mass + simd::load(part[2]) * factor;
}

}  // namespace

HeadTotals combine_blocks(const SequenceView& row, const RowScores& scores, int kv_head, int group,
                          int member) {
  const BlockSums* sums = scores.blocks + std::int64_t{kv_head} * row.num_blocks * group + member;
  float max = kMinusInfinity;
  for (int b = 0; b < row.num_blocks; ++b) {
    const float block_max = sums[std::int64_t{b} * group].max;
    max = block_max > max ? block_max : max;
  }
  // 32 blocks at a time, one a partial sum; those that are not there add 0.
  constexpr int kHalves = kCombinePartials / simd::kLanes;
  simd::Floats sum[kHalves];
  simd::Floats mass[kHalves];
  for (int i = 0; i < kHalves; ++i) sum[i] = mass[i] = simd::broadcast(0.0F);
  for (int first = 0; first < row.num_blocks; first += kCombinePartials) {
    for (int i = 0; i < kHalves; ++i) {
      BlockSums some[simd::kLanes];
      const int begin = first + i * simd::kLanes;
      for (int j = 0; j < simd::kLanes; ++j) {
        some[j] = begin + j < row.num_blocks ? sums[std::int64_t{begin + j} * group]
                                             : BlockSums{kMinusInfinity, 0.0F, 0.0F, 0.0F};
      }
      add_blocks(some, max, sum[i], mass[i]);
    }
  }
  static_assert(kHalves == 2);
  const simd::Quad sums_left = simd::fold(sum[0] + sum[1]);
  const simd::Quad masses_left = simd::fold(mass[0] + mass[1]);
  const simd::Quad both = simd::finish(sums_left, masses_left, sums_left, masses_left);
  return {max, both[1], both[0]};
}

void select_clusters(const SelectParams& params, int row, int head, const SelectScratch& scratch) {
  Chooser(params, row, head, scratch).run();
}

void expand_rows(const SequenceView& row, const IndexStore& index, int kv_head,
                 const SelectionLists& lists, int list_row, int head) {
  const std::int32_t* ids = lists.clusters_of(list_row, head);
  const std::int32_t* counts = lists.counts_of(list_row, head);
  std::uint32_t* out = lists.rows_of(list_row, head);
  const int chosen = lists.num_clusters[lists.list(list_row, head)];
  for (int i = 0; i < chosen; ++i) {
    const std::uint32_t physical = row.blocks[ids[i] / kBlockClusters];
    const std::uint32_t first = index.block_offset(kv_head, physical)[ids[i] % kBlockClusters];
    for (int r = 0; r < counts[i]; ++r) *out++ = paged_row(row.row_pages, std::int64_t{first} + r);
  }
}

}  // namespace clusterkv::select::CLUSTERKV_ISA
