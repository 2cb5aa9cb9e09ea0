// SPDX-License-Identifier: Apache-2.0
//
// The device's scores beside the CPU's, which the other suites compare with fp64: the same bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "kernels/select/cuda/select_ops.hpp"
#include "tests/support/device.hpp"

namespace clusterkv::select {
namespace {

namespace on_device = testing::on_device;
using testing::DeviceTest;
using testing::Scene;

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
  explicit Scores(const Scene& scene) : Scores(scene.num_clusters(), scene.shape.num_q_heads) {}
  Scores(int clusters, int q_heads)
      : e(static_cast<std::size_t>(clusters * q_heads)),
        z(e.size()),
        blocks(e.size() / kBlockClusters) {}
  RowScores view() { return {e.data(), z.data(), blocks.data()}; }

  testing::Guarded<float> e, z;
  testing::Guarded<BlockSums> blocks;
};

template <class T>
bool same_bits(testing::Guarded<T>& a, testing::Guarded<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

TEST_P(DeviceScore, GivesTheBitsOfTheCpu) {
  for (const auto& [use_spread, softcap] :
       {std::pair{true, 0.0F}, {false, 0.0F}, {true, 1.5F}, {false, 1.5F}}) {
    Scene s = scene({{70, 200}, {3, 9}, {64, 300}, {130, 300}});
    Scores cpu(s);
    const SequenceView view = s.view(64);
    const RowScores cpu_scores = cpu.view();
    ScoreParams p{&view,       s.index.view(),      s.query.data(),
                  &cpu_scores, s.shape.num_q_heads, s.shape.num_kv_heads,
                  0.09F,       use_spread,          1,
                  softcap};
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

/// Bits, or a NaN in both.
bool same_numbers(testing::Guarded<float>& a, testing::Guarded<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) {
      return false;
    }
  }
  return true;
}

/// All rows on the CPU and in one launch.
void expect_same(Scene& s, const SequenceView* views, int num_rows, int max_blocks,
                 float softcap = 0) {
  std::vector<std::unique_ptr<Scores>> cpu, device;
  std::vector<RowScores> cpu_rows, device_rows;
  for (int row = 0; row < num_rows; ++row) {
    const int clusters = views[row].num_blocks * kBlockClusters;
    for (auto* scores : {&cpu, &device}) {
      scores->push_back(std::make_unique<Scores>(clusters, s.shape.num_q_heads));
    }
    cpu_rows.push_back(cpu.back()->view());
    device_rows.push_back(device.back()->view());
  }
  ScoreParams p{views,
                s.index.view(),
                s.query.data(),
                cpu_rows.data(),
                s.shape.num_q_heads,
                s.shape.num_kv_heads,
                0.09F,
                true,
                1,
                softcap};
  for (int row = 0; row < num_rows; ++row) {
    for (int head = 0; head < p.num_kv_heads; ++head) {
      select::cpu().score_clusters(p, {row, head, 0, views[row].num_blocks});
    }
  }
  p.scores = device_rows.data();
  on_device::score_clusters(p, {num_rows, max_blocks, nullptr});
  for (std::size_t row = 0; row < cpu.size(); ++row) {
    EXPECT_TRUE(same_bits(cpu[row]->blocks, device[row]->blocks)) << "row " << row;
    EXPECT_TRUE(same_bits(cpu[row]->e, device[row]->e)) << "row " << row;
    EXPECT_TRUE(same_numbers(cpu[row]->z, device[row]->z)) << "row " << row;
  }
}

TEST_P(DeviceScore, ScoresTwoRowsWithNanAndZeroQueries) {
  Scene s = scene({{70, 200}, {3, 9}});
  const int dim = s.shape.op.head_dim;
  std::fill_n(s.query.begin(), dim, std::numeric_limits<float>::quiet_NaN());
  std::fill_n(s.query.end() - dim, dim, 0.0F);
  SequenceView views[2] = {s.view(64), s.view(64)};
  views[0].num_segments = 1;
  views[0].num_blocks = s.segments[0].num_blocks;
  for (const float softcap : {0.0F, 1.5F}) {
    expect_same(s, views, 2, views[1].num_blocks, softcap);
  }
}

/// 1M tokens: 131,072 clusters of one head, in few blocks of the index named again and again.
class DeviceScoreLong : public DeviceTest {};

TEST_F(DeviceScoreLong, ScoresAllClustersOfAMillionTokens) {
  testing::SceneShape shape;
  shape.op = {Backend::kCuda, DType::kBF16, 64};
  shape.index_dtype = IndexDType::kInt8;
  shape.num_q_heads = shape.num_kv_heads = 1;
  shape.segments = {{640, 1000}};
  shape.fill_rows = false;
  Scene s(shape, 3);
  constexpr int kBlocks = 2048;
  std::vector<std::uint32_t> blocks;
  for (int b = 0; b < kBlocks; ++b) {
    blocks.push_back(s.blocks[static_cast<std::size_t>(b * 7 + b / 64) % s.blocks.size()]);
  }
  SegmentView segment = s.segments[0];
  segment.num_blocks = kBlocks;
  SequenceView view = s.view(64);
  view.blocks = blocks.data();
  view.num_blocks = kBlocks;
  view.segments = &segment;
  expect_same(s, &view, 1, kBlocks);
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

}  // namespace
}  // namespace clusterkv::select
