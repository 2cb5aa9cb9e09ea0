// SPDX-License-Identifier: Apache-2.0
//
// Scores written down by hand for any number of clusters, and the lists that come of them. Built
// from the contract, without score_clusters.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
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
  HeadTotals (*combine_blocks)(const SequenceView&, const RowScores&, int, int, int, float*);
};
inline Ops ops_of(Backend) {
  return {select_clusters_cpu, expand_rows_cpu, combine_blocks_cpu};
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
};

/// One plan row of a batch of two; row 0 belongs to somebody else.
class Planted {
 public:
  static constexpr int kRow = 1;

  explicit Planted(const Plant& plant);

  SequenceView view(int budget, bool everything = false) const;
  [[nodiscard]] int group() const {
    return static_cast<int>(plant_.t.size()) / plant_.num_kv_heads;
  }
  /// Runs one selection head, checks what must hold for any list.
  List select(int head, int budget, HeadGrouping grouping, bool everything = false);
  List select_shared(int budget) { return select(0, budget, HeadGrouping::kShared); }
  /// What the reference takes, in library ids.
  [[nodiscard]] List expect(const Vec& keys, int budget) const;

  [[nodiscard]] int total_rows() const;
  RowScores scores() { return {e_.data(), z_.data(), blocks_sums_.data()}; }
  [[nodiscard]] std::size_t at(int q_head, int cluster) const;  ///< of e and z
  [[nodiscard]] std::size_t sums_at(int q_head, int block) const;
  testing::Guarded<float>& e() { return e_; }
  testing::Guarded<float>& z() { return z_; }
  testing::Guarded<BlockSums>& sums() { return blocks_sums_; }
  testing::TestIndex& index() { return index_; }
  [[nodiscard]] const std::vector<std::uint32_t>& row_pages() const { return row_pages_; }
  [[nodiscard]] const std::vector<int>& ids() const { return ids_; }
  HeadTotals totals(int q_head) {
    return totals_[static_cast<std::size_t>(kRow) * plant_.t.size() +
                   static_cast<std::size_t>(q_head)];
  }
  [[nodiscard]] SelectionLists lists(HeadGrouping grouping);

 private:
  void lay_out();
  void write_scores();
  void reset_lists(HeadGrouping grouping);
  void check_list(const SelectionLists& lists, int head, const List& list, int kv_head);

  Plant plant_;
  std::vector<int> ids_;  ///< library id of each cluster
  std::vector<std::uint32_t> blocks_;
  std::vector<std::uint32_t> row_pages_;
  int capacity_;
  testing::TestIndex index_;
  testing::Guarded<float> e_, z_;
  testing::Guarded<BlockSums> blocks_sums_;
  testing::Guarded<std::int32_t> cluster_ids_, row_counts_, num_clusters_, num_rows_;
  testing::Guarded<std::uint32_t> row_ids_;
  testing::Guarded<HeadTotals> totals_;
};

}  // namespace clusterkv::select
