// SPDX-License-Identifier: Apache-2.0
//
// The device's select ops beside the CPU's, which the other suites compare with fp64: the same bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/select/cuda/select_ops.hpp"
#include "tests/select/fixture.hpp"
#include "tests/support/device.hpp"

namespace clusterkv::select {
namespace {

namespace on_device = testing::on_device;
using testing::DeviceTest;

struct Size {
  int clusters;
  int group;
};
class DeviceSelect : public DeviceTest, public ::testing::WithParamInterface<Size> {};

/// Lists of both rows of a plan.
struct Lists {
  Lists(Planted& planted, HeadGrouping grouping) : view(planted.lists(grouping)) {
    const auto lists = static_cast<std::size_t>(2 * view.selection_heads);
    const std::size_t entries = lists * static_cast<std::size_t>(view.capacity);
    cluster_ids = row_counts = testing::Guarded<std::int32_t>(entries);
    num_clusters = num_rows = testing::Guarded<std::int32_t>(lists);
    row_ids = testing::Guarded<std::uint32_t>(entries);
    totals = testing::Guarded<HeadTotals>(2 * static_cast<std::size_t>(planted.num_q_heads()));
    view.cluster_ids = cluster_ids.data();
    view.row_counts = row_counts.data();
    view.num_clusters = num_clusters.data();
    view.num_rows = num_rows.data();
    view.row_ids = row_ids.data();
  }
  SelectionLists view;
  testing::Guarded<std::int32_t> cluster_ids, row_counts, num_clusters, num_rows;
  testing::Guarded<std::uint32_t> row_ids;
  testing::Guarded<HeadTotals> totals;
};

/// On the device the group's heads may be those of several query tokens; some other row has one more.
/// Row 0 of the plan has nothing, or the same sequence with its own budget.
void expect_same(Planted& planted, int budget, HeadGrouping grouping, bool everything,
                 int tokens = 1, int other_budget = 0) {
  SequenceView views[2] = {{}, planted.view(budget, everything)};
  if (other_budget > 0) views[0] = planted.view(other_budget);
  const RowScores scores[2] = {planted.scores(), planted.scores()};
  Lists cpu(planted, grouping), device(planted, grouping);
  const int num_kv_heads = planted.num_q_heads() / planted.group();
  SelectParams p{views,
                 planted.index().view(),
                 scores,
                 cpu.view,
                 cpu.totals.data(),
                 planted.num_q_heads(),
                 num_kv_heads,
                 grouping};
  std::vector<std::uint32_t> keys(static_cast<std::size_t>(views[1].num_blocks) * kBlockClusters);
  std::vector<std::int32_t> ids(keys.size());
  std::vector<std::int32_t> sizes(keys.size());
  for (int row = 0; row < 2; ++row) {
    for (int head = 0; head < cpu.view.selection_heads; ++head) {
      select::cpu().select_clusters(p, row, head, {keys.data(), ids.data(), sizes.data()});
      const int kv_head = head / (cpu.view.selection_heads / num_kv_heads);
      select::cpu().expand_rows(views[row], p.index, kv_head, cpu.view, row, head);
    }
  }
  p.lists = device.view;
  testing::Guarded<HeadTotals> totals(2 * device.totals.size());
  p.totals = totals.data();
  p.num_q_heads = planted.num_q_heads() / tokens;
  p.query_tokens = 2 * tokens;
  views[1].num_query_tokens = tokens;
  if (other_budget > 0) views[0].num_query_tokens = tokens;
  const int max_blocks = views[1].num_blocks + 3;
  const auto lists = static_cast<std::size_t>(2 * device.view.selection_heads);
  const std::int64_t before =
      std::int64_t{on_device::num_slices(views[0].num_blocks)} * device.view.selection_heads;
  testing::Guarded<std::int64_t> first_slice(std::vector<std::int64_t>{0, before});
  const auto slices = static_cast<std::size_t>(before + on_device::num_slices(views[1].num_blocks) *
                                                            device.view.selection_heads);
  testing::Guarded<std::uint32_t> scratch_keys(slices * on_device::kSliceClusters);
  testing::Guarded<std::int32_t> scratch_ids(scratch_keys.size()), counts(slices);
  testing::Guarded<std::uint32_t> arrived(std::vector<std::uint32_t>(lists, 0));
  on_device::select_clusters(
      p,
      {first_slice.data(), scratch_keys.data(), scratch_ids.data(), counts.data(), arrived.data()},
      {2, max_blocks, nullptr});
  EXPECT_EQ(cpu.num_clusters.copy(), device.num_clusters.copy());
  EXPECT_EQ(cpu.num_rows.copy(), device.num_rows.copy());
  EXPECT_EQ(cpu.cluster_ids.copy(), device.cluster_ids.copy());
  EXPECT_EQ(cpu.row_counts.copy(), device.row_counts.copy());
  EXPECT_EQ(cpu.row_ids.copy(), device.row_ids.copy());
  const auto heads = static_cast<std::size_t>(planted.num_q_heads());
  EXPECT_EQ(
      std::memcmp(cpu.totals.data() + heads, totals.data() + 2 * heads, heads * sizeof(HeadTotals)),
      0);
  EXPECT_EQ(arrived.copy(), std::vector<std::uint32_t>(lists, 0)) << "counters are 0 again";
}

TEST_P(DeviceSelect, ChoosesAndExpandsAsTheCpu) {
  const auto [n, group] = GetParam();
  testing::Random random(static_cast<std::uint64_t>(n * 100 + group));
  Plant plant;
  plant.num_kv_heads = 2;
  for (int i = 0; i < n; ++i) plant.sizes.push_back(random.between(0, 3) * random.between(1, 5));
  plant.sizes[0] = 4;
  for (int g = 0; g < 2 * group; ++g) {
    plant.t.emplace_back();
    // Rounded, so that ties abound.
    for (int i = 0; i < n; ++i) {
      plant.t.back().push_back(std::round(8.0 * double{random.normal()}) / 4);
    }
  }
  if (n > 70) plant.segments = {n / 3, n - n / 3};
  Planted planted(plant);
  const int total = planted.total_rows();
  for (const int budget : {1, total / 5 + 1, total, total + 7}) {
    for (const auto grouping : {HeadGrouping::kShared, HeadGrouping::kPerQueryHead}) {
      expect_same(planted, budget, grouping, false);
    }
  }
  expect_same(planted, 3, HeadGrouping::kShared, true);
  expect_same(planted, total / 3 + 1, HeadGrouping::kShared, false, group);
}

/// A plan of some clusters whose scores are all the same.
Planted flat(double t, const std::vector<int>& sizes) {
  Plant plant;
  plant.sizes = sizes;
  plant.t = {Vec(sizes.size(), t), Vec(sizes.size(), t)};
  return Planted(plant);
}

class DeviceSelectEdges : public DeviceTest {};

TEST_F(DeviceSelectEdges, TwoRowsOfAPlan) {
  testing::Random random(5);
  Plant plant;
  plant.t.resize(2);
  for (int i = 0; i < 300; ++i) {
    plant.sizes.push_back(random.between(1, 9));
    for (Vec& t : plant.t) t.push_back(double{random.normal()});
  }
  Planted planted(plant);
  for (const auto grouping : {HeadGrouping::kShared, HeadGrouping::kPerQueryHead}) {
    expect_same(planted, 100, grouping, false, 1, 333);
  }
}

// What runs in many schedules.
TEST_F(DeviceSelectEdges, TwoSlicesOfClusters) {
  testing::Random random(6);
  Plant plant;
  plant.t.resize(2);
  for (int i = 0; i < on_device::kSliceClusters + 100; ++i) {
    plant.sizes.push_back(random.between(0, 3));
    for (Vec& t : plant.t) t.push_back(std::round(8.0 * double{random.normal()}) / 4);
  }
  Planted planted(plant);
  for (const auto grouping : {HeadGrouping::kShared, HeadGrouping::kPerQueryHead}) {
    expect_same(planted, 700, grouping, false);
  }
}

TEST_F(DeviceSelectEdges, EqualScoresAndClustersWithoutRows) {
  std::vector<int> sizes(90, 3);
  sizes[80] = 0;
  for (const auto grouping : {HeadGrouping::kShared, HeadGrouping::kPerQueryHead}) {
    Planted equal = flat(1.0, sizes);
    for (const int budget : {1, 100, 400}) expect_same(equal, budget, grouping, false);
    Planted empty = flat(1.0, std::vector<int>(70, 0));
    expect_same(empty, 10, grouping, false);
  }
}

TEST_F(DeviceSelectEdges, OnlyNanAndOnlyMinusInfinity) {
  for (const float score : {std::numeric_limits<float>::quiet_NaN(), kMinusInfinity}) {
    Planted planted = flat(1.0, std::vector<int>(90, 3));
    // As score_clusters() leaves a block in which nothing is above -inf; NaN in e is worse.
    for (std::size_t i = 0; i < planted.z.size(); ++i) {
      planted.z[i] = score;
      planted.e[i] = std::isnan(score) ? score : 0.0F;
    }
    for (std::size_t i = 0; i < planted.sums.size(); ++i) {
      planted.sums[i] = {kMinusInfinity, 0.0F, 0.0F};
    }
    for (const auto grouping : {HeadGrouping::kShared, HeadGrouping::kPerQueryHead}) {
      for (const int budget : {1, 100, 400}) expect_same(planted, budget, grouping, false);
    }
  }
}

TEST_F(DeviceSelectEdges, ExpandsListsFromElsewhere) {
  testing::SceneShape shape;
  shape.op = {Backend::kCuda, DType::kBF16, 64};
  shape.segments = {{70, 500}, {5, 20}, {500, 900}};
  shape.fill_rows = false;
  testing::Scene s(shape, 4);
  constexpr int kCapacity = 1500;
  testing::Guarded<std::int32_t> clusters(4 * kCapacity), counts(4 * kCapacity);
  testing::Guarded<std::int32_t> num_clusters(4);
  testing::Guarded<std::uint32_t> device_ids(4 * kCapacity), cpu_ids(4 * kCapacity);
  const SelectionLists lists{
      2,       kCapacity,        clusters.data(), counts.data(), num_clusters.data(),
      nullptr, device_ids.data()};
  const SequenceView views[2] = {s.view(1), s.view(1)};
  SelectionLists cpu = lists;
  cpu.row_ids = cpu_ids.data();
  for (int row = 0; row < 2; ++row) {
    for (int head = 0; head < 2; ++head) {
      int count = 0;
      for (const auto& cluster : s.clusters[static_cast<std::size_t>(head)]) {
        if (row == 0 && s.random.between(0, 2) == 0) continue;  // row 1: more than 512 clusters
        lists.clusters_of(row, head)[count] = cluster.id;
        lists.counts_of(row, head)[count++] = s.random.between(1, cluster.size);
      }
      lists.num_clusters[lists.list(row, head)] = row == 0 && head == 1 ? 0 : count;
      select::cpu().expand_rows(views[row], s.index.view(), head, cpu, row, head);
    }
  }
  SelectParams p{};
  p.rows = views;
  p.index = s.index.view();
  p.lists = lists;
  p.num_q_heads = p.num_kv_heads = 2;
  on_device::expand_rows(p, {2, views[0].num_blocks, nullptr});
  EXPECT_EQ(device_ids.copy(), cpu_ids.copy());
  EXPECT_TRUE(device_ids.guards_intact());
  on_device::expand_rows(p, {0, views[0].num_blocks, nullptr});  // a plan without rows
}

/// 1M tokens: 131,072 clusters a head, 32 slices.
class DeviceSelectLong : public DeviceTest {};

TEST_F(DeviceSelectLong, ChoosesAmongAllClustersOfAMillionTokens) {
  constexpr int kClusters = 131072;
  testing::Random random(17);
  Plant plant;
  plant.sizes.assign(kClusters, 8);
  plant.t.emplace_back();
  for (int i = 0; i < kClusters; ++i) {
    plant.t[0].push_back(std::round(30.0 * double{random.normal()}) / 10);
  }
  Planted planted(plant);
  for (const int budget : {500, 70000}) {
    expect_same(planted, budget, HeadGrouping::kShared, false);
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, DeviceSelect,
                         ::testing::Values(Size{1, 1}, Size{63, 1}, Size{65, 2}, Size{200, 3},
                                           Size{257, 4}, Size{300, 12}, Size{1365, 4},
                                           Size{4032, 1}, Size{4200, 2}, Size{9000, 4}),
                         [](const auto& size) {
                           return "n" + std::to_string(size.param.clusters) + "_g" +
                                  std::to_string(size.param.group);
                         });

}  // namespace
}  // namespace clusterkv::select
