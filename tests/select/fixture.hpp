// SPDX-License-Identifier: Apache-2.0
//
// Scores written down by hand for any number of clusters, and the lists that come of them. Built
// from the contract, without score_clusters.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <ostream>
#include <utility>
#include <vector>

#include "kernels/select/rules.hpp"
#include "kernels/select/select.hpp"
#include "tests/reference/select.hpp"
#include "tests/support/stores.hpp"

namespace clusterkv::select {

using reference::Vec;

struct Ops {
  void (*select_clusters)(const SelectParams&, int, int, const SelectScratch&);
  void (*expand_rows)(const SequenceView&, const IndexStore&, int, const SelectionLists&, int, int);
  HeadTotals (*combine_blocks)(const SequenceView&, const RowScores&, int, int, int);
};
inline Ops ops_of(Backend) {
  return {cpu().select_clusters, cpu().expand_rows, cpu().combine_blocks};
}

/// What a test says: sizes of clusters in the order of their ids, and t of each head.
struct Plant {
  std::vector<int> sizes;  ///< 0: a cluster without rows, at the end of its segment
  std::vector<Vec> t;      ///< [q_head][cluster], units of log2
  int num_kv_heads = 1;
  /// Clusters of each segment; a segment begins a new block. Empty: one segment.
  std::vector<int> segments;
};

struct List {
  std::vector<std::pair<int, int>> clusters;  ///< (id, rows)
  int num_rows;
  bool operator==(const List&) const = default;
  friend void PrintTo(const List& list, std::ostream* out) {
    *out << list.num_rows << " rows:";
    for (const auto& [id, rows] : list.clusters) *out << ' ' << id << 'x' << rows;
  }
};

/// One plan row of a batch of two; row 0 belongs to somebody else.
class Planted {
 public:
  static constexpr int kRow = 1;
  static constexpr std::int32_t kUntouched = 0x77777777;

  explicit Planted(const Plant& plant)
      : plant_(plant),
        capacity_(std::max(total_rows(), 1) + 3),
        index_(IndexDType::kF32, 64, plant.num_kv_heads, num_blocks_of(plant), 1) {
    if (plant_.segments.empty()) plant_.segments = {static_cast<int>(plant.sizes.size())};
    for (int b = num_blocks_of(plant) - 1; b >= 0; --b) {
      blocks_.push_back(static_cast<std::uint32_t>(b));
    }
    for (int p = total_rows() / kPageRows; p >= 0; --p) {
      row_pages_.push_back(static_cast<std::uint32_t>(2 * p + 1));
    }
    for (int head = 0; head < plant_.num_kv_heads; ++head) lay_out(head);
    write_scores();
  }

  [[nodiscard]] SequenceView view(int budget, bool everything = false) const {
    SequenceView v{};
    v.row_pages = row_pages_.data();
    v.blocks = blocks_.data();
    v.num_blocks = static_cast<std::int32_t>(blocks_.size());
    v.num_stored = total_rows();
    v.budget_tokens = budget;
    v.everything = everything;
    v.num_query_tokens = query_tokens;
    return v;
  }
  /// Runs one selection head and checks what must hold for any list.
  List select(int head, int budget, HeadGrouping grouping, bool everything = false) {
    reset_lists(grouping);
    const SequenceView views[2] = {{}, view(budget, everything)};
    const RowScores rows[2] = {{}, scores()};
    testing::Guarded<std::uint32_t> keys(blocks_.size() * kBlockClusters);
    testing::Guarded<std::int32_t> ids(keys.size());
    testing::Guarded<std::int32_t> sizes(keys.size());
    const SelectionLists to = lists(grouping);
    ops_of(Backend::kCpu)
        .select_clusters(
            {views, index_.view(), rows, to, totals_.data(), num_q_heads() / query_tokens,
             plant_.num_kv_heads, grouping, query_tokens},
            kRow, head, {keys.data(), ids.data(), sizes.data()});
    EXPECT_TRUE(keys.guards_intact() && ids.guards_intact() && sizes.guards_intact());
    const List list = read_list(to, head);
    const int kv_head = grouping == HeadGrouping::kShared ? head : head / group();
    check_list(list, kv_head, everything ? total_rows() : std::min(budget, total_rows()));
    check_others(to, head);
    return list;
  }
  List select_shared(int budget) { return select(0, budget, HeadGrouping::kShared); }

  /// What the reference takes, in library ids.
  [[nodiscard]] List expect(const Vec& keys, int budget) const {
    const std::vector<int> taken = reference::choose(keys, plant_.sizes, budget);
    List list{{}, 0};
    for (std::size_t c = 0; c < taken.size(); ++c) {
      if (taken[c] > 0) list.clusters.emplace_back(ids_[c], taken[c]);
      list.num_rows += taken[c];
    }
    return list;
  }

  [[nodiscard]] int group() const { return num_q_heads() / plant_.num_kv_heads; }
  [[nodiscard]] int num_q_heads() const { return static_cast<int>(plant_.t.size()); }
  [[nodiscard]] int total_rows() const {
    return std::accumulate(plant_.sizes.begin(), plant_.sizes.end(), 0);
  }
  RowScores scores() { return {e.data(), z.data(), sums.data()}; }
  /// Of e and z.
  [[nodiscard]] std::size_t at(int q_head, std::size_t cluster) const {
    return sums_at(q_head, ids_[cluster] / kBlockClusters) * kBlockClusters +
           static_cast<std::size_t>(ids_[cluster] % kBlockClusters);
  }
  [[nodiscard]] std::size_t sums_at(int q_head, int block) const {
    const int plane = q_head / group() * static_cast<int>(blocks_.size());
    return static_cast<std::size_t>((plane + block) * group() + q_head % group());
  }
  HeadTotals totals(int q_head) {
    return totals_[static_cast<std::size_t>(kRow * num_q_heads() + q_head)];
  }
  [[nodiscard]] SelectionLists lists(HeadGrouping grouping) {
    const int heads = grouping == HeadGrouping::kShared ? plant_.num_kv_heads : num_q_heads();
    return {heads,
            capacity_,
            cluster_ids_.data(),
            row_counts_.data(),
            num_clusters_.data(),
            num_rows_.data(),
            row_ids_.data()};
  }
  testing::TestIndex& index() { return index_; }

  int query_tokens = 1;  ///< whose heads the plant's are

  testing::Guarded<float> e, z;
  testing::Guarded<BlockSums> sums;

 private:
  static int num_blocks_of(const Plant& plant) {
    int blocks = 0;
    if (plant.segments.empty()) return (static_cast<int>(plant.sizes.size()) + 63) / 64;
    for (const int clusters : plant.segments) blocks += (clusters + 63) / 64;
    return blocks;
  }
  [[nodiscard]] int num_ids() const { return static_cast<int>(blocks_.size()) * kBlockClusters; }

  /// Offsets of all clusters, unused ones included, and ids.
  void lay_out(int kv_head) {
    ids_.clear();
    std::uint32_t row = 0;
    int first_block = 0;
    std::size_t cluster = 0;
    for (const int count : plant_.segments) {
      const int blocks = (count + 63) / 64;
      for (int c = 0; c < blocks * kBlockClusters; ++c) {
        const int block = first_block + c / kBlockClusters;
        std::uint32_t* offset =
            index_.view().block_offset(kv_head, blocks_[static_cast<std::size_t>(block)]);
        offset[c % kBlockClusters] = row;
        if (c < count) {
          ids_.push_back(block * kBlockClusters + c % kBlockClusters);
          row += static_cast<std::uint32_t>(plant_.sizes[cluster++]);
        }
        offset[c % kBlockClusters + 1] = row;
      }
      first_block += blocks;
    }
  }
  void write_scores() {
    const auto heads = static_cast<std::size_t>(num_q_heads());
    e = testing::Guarded<float>(std::vector<float>(blocks_.size() * kBlockClusters * heads, 0.0F));
    z = testing::Guarded<float>(e.size());
    sums = testing::Guarded<BlockSums>(
        std::vector<BlockSums>(blocks_.size() * heads, {kMinusInfinity, 0.0F, 0.0F, 0.0F}));
    for (int head = 0; head < num_q_heads(); ++head) {
      for (int b = 0; b < static_cast<int>(blocks_.size()); ++b) write_block(head, b);
    }
  }
  void write_block(int head, int block) {
    const Vec& t = plant_.t[static_cast<std::size_t>(head)];
    double max = -std::numeric_limits<double>::infinity();
    double sum = 0;
    double mass = 0;
    float max_mass = 0;
    const auto each = [&](const auto& fn) {
      for (std::size_t c = 0; c < ids_.size(); ++c) {
        if (ids_[c] / kBlockClusters == block && plant_.sizes[c] > 0) fn(c);
      }
    };
    each([&](std::size_t c) { max = std::max(max, t[c]); });
    each([&](std::size_t c) {
      const double share = std::exp2(t[c] - max);
      sum += share;
      mass += plant_.sizes[c] * share;
      max_mass =
          std::max(max_mass, static_cast<float>(plant_.sizes[c]) * static_cast<float>(share));
      e[at(head, c)] = static_cast<float>(share);
      z[at(head, c)] = static_cast<float>(t[c]);
    });
    sums[sums_at(head, block)] = {static_cast<float>(max), static_cast<float>(sum),
                                  static_cast<float>(mass), max_mass};
  }
  void reset_lists(HeadGrouping grouping) {
    const auto heads = static_cast<std::size_t>(
        grouping == HeadGrouping::kShared ? plant_.num_kv_heads : num_q_heads());
    const std::vector<std::int32_t> lists(2 * heads * static_cast<std::size_t>(capacity_),
                                          kUntouched);
    cluster_ids_ = row_counts_ = testing::Guarded<std::int32_t>(lists);
    num_clusters_ = num_rows_ =
        testing::Guarded<std::int32_t>(std::vector<std::int32_t>(2 * heads, kUntouched));
    row_ids_ = testing::Guarded<std::uint32_t>(lists.size());
    totals_ = testing::Guarded<HeadTotals>(2 * static_cast<std::size_t>(num_q_heads()));
  }
  static List read_list(const SelectionLists& lists, int head) {
    const auto list = lists.list(kRow, head);
    List result{{}, lists.num_rows[list]};
    const int count = lists.num_clusters[list];
    for (int i = 0; i < lists.capacity; ++i) {
      if (i >= count) {
        EXPECT_EQ(lists.clusters_of(kRow, head)[i], -1);
        continue;
      }
      result.clusters.emplace_back(lists.clusters_of(kRow, head)[i],
                                   lists.counts_of(kRow, head)[i]);
    }
    return result;
  }
  void check_list(const List& list, int kv_head, int want_rows) {
    int rows = 0;
    int last = -1;
    for (const auto& [id, count] : list.clusters) {
      EXPECT_GT(id, last) << "ascending";
      ASSERT_LT(id, num_ids());
      EXPECT_GT(count, 0);
      EXPECT_LE(count, index_.view().cluster_size(view(1), kv_head, id));
      last = id;
      rows += count;
    }
    EXPECT_EQ(rows, list.num_rows);
    EXPECT_EQ(list.num_rows, want_rows);
  }
  void check_others(const SelectionLists& lists, int head) {
    EXPECT_TRUE(cluster_ids_.guards_intact() && row_counts_.guards_intact());
    EXPECT_TRUE(num_clusters_.guards_intact() && num_rows_.guards_intact());
    EXPECT_TRUE(totals_.guards_intact() && row_ids_.guards_intact());
    for (int row = 0; row < 2; ++row) {
      for (int other = 0; other < lists.selection_heads; ++other) {
        if (row == kRow && other == head) continue;
        EXPECT_EQ(lists.num_clusters[lists.list(row, other)], kUntouched);
        EXPECT_EQ(lists.clusters_of(row, other)[0], kUntouched);
        EXPECT_EQ(lists.counts_of(row, other)[lists.capacity - 1], kUntouched);
      }
    }
  }

  Plant plant_;
  std::vector<int> ids_;  ///< library id of each cluster
  std::vector<std::uint32_t> blocks_;
  std::vector<std::uint32_t> row_pages_;
  int capacity_;
  testing::TestIndex index_;
  testing::Guarded<std::int32_t> cluster_ids_, row_counts_, num_clusters_, num_rows_;
  testing::Guarded<std::uint32_t> row_ids_;
  testing::Guarded<HeadTotals> totals_;
};

}  // namespace clusterkv::select
