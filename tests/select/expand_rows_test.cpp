// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <vector>

#include "kernels/select/select.hpp"
#include "tests/support/stores.hpp"

namespace clusterkv::select {
namespace {

void (*expand_of(Backend))(const SequenceView&, const IndexStore&, int, const SelectionLists&, int,
                           int) {
  return cpu().expand_rows;
}

class ExpandRows : public ::testing::TestWithParam<std::tuple<Backend, std::uint64_t>> {
 protected:
  static constexpr int kHeads = 3;
  static constexpr int kCapacity = 1500;
  static constexpr int kHead = 2;

  ExpandRows() : scene(shape(), std::get<1>(GetParam())) {}

  static testing::SceneShape shape() {
    testing::SceneShape s;
    s.op = {std::get<0>(GetParam()), DType::kF32, 64};
    s.segments = {{70, 500}, {5, 20}, {64, 900}};
    return s;
  }
  SelectionLists lists() {
    return {kHeads,          kCapacity,     clusters.data(), counts.data(), num_clusters.data(),
            num_rows.data(), row_ids.data()};
  }
  /// Puts a choice into list (1, kHead) and expands it for a KV head.
  std::vector<std::uint32_t> expand(const std::vector<std::pair<int, int>>& choice, int kv_head) {
    const SelectionLists to = lists();
    int rows = 0;
    for (std::size_t i = 0; i < choice.size(); ++i) {
      to.clusters_of(1, kHead)[i] = choice[i].first;
      to.counts_of(1, kHead)[i] = choice[i].second;
      rows += choice[i].second;
    }
    to.num_clusters[to.list(1, kHead)] = static_cast<int>(choice.size());
    to.num_rows[to.list(1, kHead)] = rows;
    expand_of(std::get<0>(GetParam()))(scene.view(1), scene.index.view(), kv_head, to, 1, kHead);
    EXPECT_TRUE(row_ids.guards_intact());
    for (std::size_t i = 0; i < static_cast<std::size_t>((kHeads + kHead) * kCapacity); ++i) {
      EXPECT_EQ(row_ids[i], 0xFFFFFFFFU) << "row of another list";
    }
    return {to.rows_of(1, kHead), to.rows_of(1, kHead) + rows};
  }

  testing::Scene scene;
  testing::Guarded<std::int32_t> clusters{2 * kHeads * kCapacity};
  testing::Guarded<std::int32_t> counts{2 * kHeads * kCapacity};
  testing::Guarded<std::int32_t> num_clusters{2 * kHeads};
  testing::Guarded<std::int32_t> num_rows{2 * kHeads};
  testing::Guarded<std::uint32_t> row_ids{2 * kHeads * kCapacity};
};

TEST_P(ExpandRows, NamesTheFirstRowsOfEachClusterInOrder) {
  for (int kv_head = 0; kv_head < 2; ++kv_head) {
    std::vector<std::pair<int, int>> choice;
    std::vector<std::uint32_t> want;
    for (const auto& cluster : scene.clusters[static_cast<std::size_t>(kv_head)]) {
      if (scene.random.between(0, 2) == 0) continue;
      const int taken = scene.random.between(1, cluster.size);
      choice.emplace_back(cluster.id, taken);
      for (int i = 0; i < taken; ++i) want.push_back(scene.stored.row_of(cluster.first_row + i));
    }
    EXPECT_EQ(expand(choice, kv_head), want);
  }
}

TEST_P(ExpandRows, AllClustersNameEachRowOnce) {
  std::vector<std::pair<int, int>> choice;
  for (const auto& cluster : scene.clusters[0]) choice.emplace_back(cluster.id, cluster.size);
  const auto rows = expand(choice, 0);
  ASSERT_EQ(static_cast<std::int64_t>(rows.size()), scene.num_stored);
  for (std::int64_t row = 0; row < scene.num_stored; ++row) {
    EXPECT_EQ(rows[static_cast<std::size_t>(row)], scene.stored.row_of(row));
  }
}

TEST_P(ExpandRows, AnEmptyChoiceNamesNothing) {
  EXPECT_TRUE(expand({}, 0).empty());
}

INSTANTIATE_TEST_SUITE_P(Ops, ExpandRows,
                         ::testing::Combine(::testing::Values(Backend::kCpu),
                                            ::testing::Values(1U, 2U, 3U)),
                         [](const auto& p) {
                           return testing::name_of(std::get<0>(p.param)) + "_seed" +
                                  std::to_string(std::get<1>(p.param));
                         });

}  // namespace
}  // namespace clusterkv::select
