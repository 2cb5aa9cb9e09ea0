// SPDX-License-Identifier: Apache-2.0
//
// The device's select ops beside the CPU's, which the other suites compare with fp64: the same bits.
#include "tests/support/device.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/select/cuda/select_ops.hpp"
#include "tests/select/fixture.hpp"

namespace clusterkv::select {
namespace {

namespace on_device = testing::on_device;
using testing::DeviceTest;
using testing::Scene;

// ------------------------------------------------------------------------------------- score

struct Heads {
  int q;
  int kv;
};
using ScoreCase = std::tuple<IndexDType, int, Heads>;

class DeviceScore : public DeviceTest, public ::testing::WithParamInterface<ScoreCase> {
 protected:
  static Scene scene(std::vector<testing::SegmentShape> segments) {
    const auto& [index_dtype, head_dim, heads] = GetParam();
    testing::SceneShape s;
    s.op = {Backend::kCuda, DType::kBF16, head_dim};
    s.index_dtype = index_dtype;
    s.num_q_heads = heads.q;
    s.num_kv_heads = heads.kv;
    s.segments = std::move(segments);
    s.fill_rows = false;
    return Scene(s, 7);
  }
};

struct Scores {
  explicit Scores(const Scene& scene)
      : e(static_cast<std::size_t>(scene.num_clusters() * scene.shape.num_q_heads)),
        z(e.size()),
        blocks(scene.blocks.size() * static_cast<std::size_t>(scene.shape.num_q_heads)) {}
  RowScores view() { return {e.data(), z.data(), blocks.data()}; }

  testing::Guarded<float> e, z;
  testing::Guarded<BlockSums> blocks;
};

template <class T>
bool same_bits(testing::Guarded<T>& a, testing::Guarded<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

TEST_P(DeviceScore, GivesTheBitsOfTheCpu) {
  for (const bool use_spread : {true, false}) {
    Scene s = scene({{70, 200}, {3, 9}, {64, 300}, {130, 300}});
    Scores cpu(s);
    const SequenceView view = s.view(64);
    const RowScores cpu_scores = cpu.view();
    ScoreParams p{&view,       s.index.view(),      s.query.data(),
                  &cpu_scores, s.shape.num_q_heads, s.shape.num_kv_heads,
                  0.09F,       use_spread};
    for (int head = 0; head < p.num_kv_heads; ++head) {
      select::cpu().score_clusters(p, {0, head, 0, view.num_blocks});
    }
    RowScores device_scores;
    p.scores = &device_scores;
    // A launch for shorter sequences has fewer blocks of threads, which take several turns.
    SequenceView tokens = view;  // each member of a group a token of its own
    tokens.num_query_tokens = use_spread ? 1 : s.group();
    p.rows = &tokens;
    p.num_q_heads = s.shape.num_q_heads / tokens.num_query_tokens;
    p.query_tokens = tokens.num_query_tokens + 1;
    for (const auto math : {on_device::IntegerMath::kMma, on_device::IntegerMath::kDp4a}) {
      Scores device(s);
      device_scores = device.view();
      on_device::score_clusters(p, {1, use_spread ? view.num_blocks : 1, nullptr}, math);
      EXPECT_TRUE(same_bits(cpu.blocks, device.blocks));
      EXPECT_TRUE(same_bits(cpu.e, device.e));
      EXPECT_TRUE(same_bits(cpu.z, device.z));
      EXPECT_TRUE(device.e.guards_intact() && device.z.guards_intact() &&
                  device.blocks.guards_intact());
      if (s.shape.index_dtype != IndexDType::kInt8) break;
    }
  }
}

TEST_P(DeviceScore, LeavesRowsAloneThatAreNotScored) {
  Scene s = scene({{70, 200}});
  Scores device(s), untouched(s);
  SequenceView views[2] = {s.view(64), s.view(64)};
  views[0].everything = true;
  views[1].query_row = -1;
  const RowScores scores[2] = {device.view(), device.view()};
  on_device::score_clusters({views, s.index.view(), s.query.data(), scores, s.shape.num_q_heads,
                             s.shape.num_kv_heads, 0.09F, true},
                            {2, views[0].num_blocks, nullptr});
  EXPECT_TRUE(same_bits(untouched.e, device.e));
  EXPECT_TRUE(same_bits(untouched.blocks, device.blocks));
}

std::string name_of_score_case(const ::testing::TestParamInfo<ScoreCase>& info) {
  const auto& [dtype, dim, heads] = info.param;
  return testing::name_of(dtype) + "_d" + std::to_string(dim) + "_q" + std::to_string(heads.q) +
         "_kv" + std::to_string(heads.kv);
}

INSTANTIATE_TEST_SUITE_P(
    Ops, DeviceScore,
    ::testing::Combine(::testing::Values(IndexDType::kInt8, IndexDType::kBF16, IndexDType::kF32),
                       ::testing::Values(64, 80, 96, 128, 256),
                       ::testing::Values(Heads{2, 2}, Heads{6, 2}, Heads{5, 1}, Heads{12, 1})),
    name_of_score_case);

// ------------------------------------------------------------------------------------ select

struct Size {
  int clusters;
  int group;
};
class DeviceSelect : public DeviceTest, public ::testing::WithParamInterface<Size> {};

/// Lists of both rows of a plan; row 0 has nothing.
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
void expect_same(Planted& planted, int budget, HeadGrouping grouping, bool everything,
                 int tokens = 1) {
  SequenceView views[2] = {{}, planted.view(budget, everything)};
  const RowScores scores[2] = {{}, planted.scores()};
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
  const int max_blocks = views[1].num_blocks + 3;
  const auto lists = static_cast<std::size_t>(2 * device.view.selection_heads);
  const auto slices = lists * static_cast<std::size_t>(on_device::num_slices(max_blocks));
  testing::Guarded<std::uint32_t> scratch_keys(slices * on_device::kSliceClusters);
  testing::Guarded<std::int32_t> scratch_ids(scratch_keys.size()), counts(slices);
  testing::Guarded<std::uint32_t> arrived(std::vector<std::uint32_t>(lists, 0));
  on_device::select_clusters(
      p, {scratch_keys.data(), scratch_ids.data(), counts.data(), arrived.data()},
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
