// SPDX-License-Identifier: Apache-2.0
//
// select_clusters, expand_rows (stage 3, select). Contract and shapes: select/select.hpp.
//
// Mapping: votes become integer keys; three histogram passes, weighted by cluster size, find the key
//          at which the budget is full; one pass in id order takes what lies above it.
// Bound:   the passes over the keys, which stay in the L1 or L2 cache.
#include <algorithm>

#include "kernels/select/cpu/ops.hpp"
#include "kernels/select/rules.hpp"

namespace clusterkv::select::CLUSTERKV_ISA {
namespace {

/// Clusters whose key is above `key` are taken whole; those equal to it, by id, until `left` rows
/// are used up.
struct Pivot {
  std::uint32_t key;
  int left;
};

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
      for (int g = 0; g < members_; ++g) totals_[first_member_ + g] = {kMinusInfinity, 0.0F};
      emit(row_.query_row < 0 ? Pivot{0xffffffffU, 0} : Pivot{0, 0}, row_.everything);
      return;
    }
    per_query_head_ ? score_keys() : vote_keys();
    emit(find_pivot(), false);
  }

 private:
  int num_clusters() const { return row_.num_blocks * kBlockClusters; }
  int size(int cluster) const { return p_.index.cluster_size(row_, kv_head_, cluster); }

  void vote_keys() {
    float max[kMaxPassHeads];
    float sum[kMaxPassHeads];
    // Groups larger than a pass keep their running vote, as float bits, in the key array.
    for (int first = 0; first < members_; first += kMaxPassHeads) {
      const int heads = std::min(kMaxPassHeads, members_ - first);
      for (int g = 0; g < heads; ++g) {
        totals_[first + g] = combine_blocks(row_, scores_, kv_head_, group_, first + g, &sum[g]);
        max[g] = totals_[first + g].max;
      }
      add_votes(first, heads, max, sum);
    }
    for (int c = 0; c < num_clusters(); ++c) {
      scratch_.keys[c] = vote_key(std::bit_cast<float>(scratch_.keys[c]));
    }
  }

  void add_votes(int first, int heads, const float* max, const float* sum) {
    for (int block = 0; block < row_.num_blocks; ++block) {
      const std::int64_t at = std::int64_t{kv_head_} * row_.num_blocks + block;
      float factor[kMaxPassHeads];
      for (int g = 0; g < heads; ++g) {
        const BlockSums& sums = scores_.blocks[at * group_ + first + g];
        factor[g] = softmax_factor(sums.max, max[g], sum[g]);
      }
      const float* e = scores_.e + at * kBlockClusters * group_ + first;
      std::uint32_t* keys = scratch_.keys + block * kBlockClusters;
      for (int c = 0; c < kBlockClusters; ++c, e += group_) {
        float vote = first == 0 ? 0.0F : std::bit_cast<float>(keys[c]);
        for (int g = 0; g < heads; ++g) vote = vote + e[g] * factor[g];
        keys[c] = std::bit_cast<std::uint32_t>(vote);
      }
    }
  }

  void score_keys() {
    float sum = 0.0F;
    totals_[first_member_] = combine_blocks(row_, scores_, kv_head_, group_, first_member_, &sum);
    const float* z = scores_.z + std::int64_t{kv_head_} * num_clusters() * group_ + first_member_;
    for (int c = 0; c < num_clusters(); ++c) scratch_.keys[c] = score_key(z[c * group_]);
  }

  /// Digit by digit, from the highest: which digit of the key fills the budget?
  Pivot find_pivot() const {
    std::uint32_t prefix = 0;
    std::int64_t left = std::min<std::int64_t>(row_.budget_tokens, row_.num_stored);
    for (int pass = 0; pass < kPasses; ++pass) {
      const int shift = pass_shift(pass);
      const int bins = 1 << pass_bits(pass);
      const int prefix_shift = shift + pass_bits(pass);
      std::fill(scratch_.histogram, scratch_.histogram + bins, 0);
      for (int c = 0; c < num_clusters(); ++c) {
        const std::uint32_t key = scratch_.keys[c];
        const bool matches = pass == 0 || (key >> prefix_shift) == (prefix >> prefix_shift);
        if (!matches) continue;
        scratch_.histogram[(key >> shift) & static_cast<std::uint32_t>(bins - 1)] += size(c);
      }
      int digit = bins - 1;
      while (digit > 0 && scratch_.histogram[digit] < left) left -= scratch_.histogram[digit--];
      prefix |= static_cast<std::uint32_t>(digit) << shift;
    }
    return {prefix, static_cast<int>(left)};
  }

  void emit(Pivot pivot, bool everything) {
    std::int32_t* ids = p_.lists.clusters_of(row_number_, head_);
    std::int32_t* counts = p_.lists.counts_of(row_number_, head_);
    int chosen = 0;
    int rows = 0;
    const int clusters = row_.query_row < 0 ? 0 : num_clusters();
    for (int c = 0; c < clusters; ++c) {
      int take = size(c);
      if (take == 0) continue;
      if (!everything && scratch_.keys[c] <= pivot.key) {
        if (scratch_.keys[c] < pivot.key || pivot.left == 0) continue;
        take = trim(take, pivot.left);
        pivot.left -= take;
      }
      ids[chosen] = c;
      counts[chosen++] = take;
      rows += take;
    }
    const std::int64_t list = p_.lists.list(row_number_, head_);
    p_.lists.num_clusters[list] = chosen;
    p_.lists.num_rows[list] = rows;
    std::fill(ids + chosen, ids + p_.lists.capacity, -1);
    std::fill(counts + chosen, counts + p_.lists.capacity, 0);
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
};

}  // namespace

HeadTotals combine_blocks(const SequenceView& row, const RowScores& scores, int kv_head, int group,
                          int member, float* softmax_sum) {
  const BlockSums* sums = scores.blocks + std::int64_t{kv_head} * row.num_blocks * group + member;
  float max = kMinusInfinity;
  for (int b = 0; b < row.num_blocks; ++b) {
    const float block_max = sums[std::int64_t{b} * group].max;
    max = block_max > max ? block_max : max;
  }
  float sum[kCombinePartials] = {};
  float mass[kCombinePartials] = {};
  for (int b = 0; b < row.num_blocks; ++b) {
    const BlockSums& block = sums[std::int64_t{b} * group];
    const float factor = exp2_fixed(block.max - max);
    sum[b % kCombinePartials] = sum[b % kCombinePartials] + block.sum * factor;
    mass[b % kCombinePartials] = mass[b % kCombinePartials] + block.mass_sum * factor;
  }
  *softmax_sum = tree_sum<kCombinePartials>(sum);
  return {max, tree_sum<kCombinePartials>(mass)};
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
