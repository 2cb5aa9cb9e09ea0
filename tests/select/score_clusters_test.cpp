// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "clusterkv/error.hpp"
#include "kernels/select/select.hpp"
#include "tests/reference/select.hpp"
#include "tests/support/compare.hpp"
#include "tests/support/stores.hpp"

namespace clusterkv::select {
namespace {

using reference::Vec;
using testing::Scene;

struct Heads {
  int q;
  int kv;
};
using Param = std::tuple<Backend, IndexDType, int, Heads>;

void (*score_of(Backend))(const ScoreParams&, const ScoreItem&) {
  return cpu().score_clusters;
}

/// Scores of one plan row, NaN until written.
struct Scores {
  explicit Scores(const Scene& scene)
      : e(static_cast<std::size_t>(scene.num_clusters() * scene.shape.num_q_heads)),
        z(e.size()),
        blocks(scene.blocks.size() * static_cast<std::size_t>(scene.shape.num_q_heads)) {}
  RowScores view() { return {e.data(), z.data(), blocks.data()}; }
  [[nodiscard]] bool guards_intact() const {
    return e.guards_intact() && z.guards_intact() && blocks.guards_intact();
  }
  [[nodiscard]] bool same_bits(Scores& other) {
    return std::memcmp(e.data(), other.e.data(), e.size() * 4) == 0 &&
           std::memcmp(z.data(), other.z.data(), z.size() * 4) == 0 &&
           std::memcmp(blocks.data(), other.blocks.data(), blocks.size() * 12) == 0;
  }

  testing::Guarded<float> e, z;
  testing::Guarded<BlockSums> blocks;
};

class ScoreClusters : public ::testing::TestWithParam<Param> {
 protected:
  static testing::SceneShape shape(std::vector<testing::SegmentShape> segments) {
    const auto& [backend, index_dtype, head_dim, heads] = GetParam();
    testing::SceneShape s;
    s.op = {backend, DType::kF32, head_dim};
    s.index_dtype = index_dtype;
    s.num_q_heads = heads.q;
    s.num_kv_heads = heads.kv;
    s.segments = std::move(segments);
    s.fill_rows = false;
    return s;
  }
  static testing::SceneShape usual() { return shape({{70, 200}, {3, 9}, {64, 300}}); }

  ScoreParams params(Scene& scene, const SequenceView& view, const RowScores& scores,
                     bool use_spread) const {
    return {&view,
            scene.index.view(),
            scene.query.data(),
            &scores,
            scene.shape.num_q_heads,
            scene.shape.num_kv_heads,
            scale,
            use_spread,
            1,
            softcap};
  }
  void run(Scene& scene, Scores& scores, bool use_spread = true) const {
    const SequenceView view = scene.view(64);
    const RowScores target = scores.view();
    for (int head = 0; head < scene.shape.num_kv_heads; ++head) {
      score_of(std::get<0>(GetParam()))(params(scene, view, target, use_spread),
                                        {0, head, 0, view.num_blocks});
    }
    EXPECT_TRUE(scores.guards_intact());
  }
  void expect_head(Scene& scene, Scores& scores, int q_head, bool use_spread) const;

  float scale = 0.09F;
  float softcap = 0;
};

struct Expected {
  std::size_t at;  ///< of e and z
  double z, t, tolerance;
  int size;
};

/// One block and head: e, z and the sums against fp64.
void expect_block(const std::vector<Expected>& want, Scores& scores, const BlockSums& sums) {
  double max = -INFINITY;
  double tolerance = 0;
  for (const Expected& w : want) {
    max = std::max(max, w.t);
    tolerance = std::max(tolerance, w.tolerance);
  }
  double sum = 0;
  double mass = 0;
  for (const Expected& w : want) {
    const double e = std::exp2(w.t - max);
    sum += e;
    mass += w.size * e;
    EXPECT_NEAR(scores.z[w.at], w.z, w.tolerance);
    // Both t and the maximum may be off; 3e-7 is exp2_fixed's own.
    EXPECT_NEAR(scores.e[w.at], e, e * 2 * tolerance + 3e-7);
  }
  if (want.empty()) {
    EXPECT_EQ(sums.max, -INFINITY);
    EXPECT_EQ(sums.sum, 0.0F);
    EXPECT_EQ(sums.mass_sum, 0.0F);
    return;
  }
  EXPECT_NEAR(sums.max, max, tolerance);
  EXPECT_NEAR(sums.sum, sum, sum * 2 * tolerance + 1e-5);
  EXPECT_NEAR(sums.mass_sum, mass, mass * 2 * tolerance + 1e-5 * mass);
}

void ScoreClusters::expect_head(Scene& scene, Scores& scores, int q_head, bool use_spread) const {
  const int group = scene.group();
  const int kv_head = q_head / group;
  const auto g = static_cast<std::size_t>(group);
  const auto member = static_cast<std::size_t>(q_head % group);
  const Vec query = scene.shape.index_dtype == IndexDType::kInt8
                        ? reference::quantised_query(scene.query_of(q_head))
                        : scene.query_of(q_head);
  const auto plane = static_cast<std::size_t>(kv_head) * scene.blocks.size();
  const auto at_cluster = [&](std::size_t id) {
    return ((plane + id / kBlockClusters) * g + member) * kBlockClusters + id % kBlockClusters;
  };
  std::vector<std::vector<Expected>> blocks(scene.blocks.size());
  std::vector<bool> has_rows(static_cast<std::size_t>(scene.num_clusters()));
  for (const Scene::Cluster& c : scene.clusters[static_cast<std::size_t>(kv_head)]) {
    const auto id = static_cast<std::size_t>(c.id);
    has_rows[id] = true;
    const std::uint32_t block = scene.block_of(c.id);
    const Vec centroid = scene.index.centroid(kv_head, block, c.id % kBlockClusters);
    const float* profile = scene.index.view().record_profile(
        kv_head, scene.segments[static_cast<std::size_t>(c.segment)].record);
    const double spread =
        use_spread
            ? scene.index.view().spread[scene.index.at(kv_head, block, c.id % kBlockClusters)]
            : 0.0;
    const Vec profiles(profile, profile + query.size());
    const double w = reference::spread_weight(query, spread, profiles, double{scale});
    const auto s =
        reference::score(query, centroid, spread, profiles, double{scale}, double{softcap});
    double size = 0;
    for (std::size_t d = 0; d < query.size(); ++d) size += std::abs(query[d] * centroid[d]);
    // 21 roundings of half an ulp in a dot of 256 products; the polynomial of the logarithm.
    const double tolerance = 21 * 0x1p-24 * double{scale} * reference::kLog2E * size + 2e-6;
    double of_t = tolerance;  // a cap bends t
    for (const double z : {s.z - tolerance, s.z + tolerance}) {
      of_t = std::max(of_t, 1e-6 + std::abs(reference::mass_score(z, w, double{softcap}) - s.t));
    }
    blocks[id / kBlockClusters].push_back({at_cluster(id), s.z, s.t, of_t, c.size});
  }
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const std::size_t at = (static_cast<std::size_t>(kv_head) * blocks.size() + b) * g + member;
    expect_block(blocks[b], scores, scores.blocks[at]);
  }
  for (std::size_t id = 0; id < has_rows.size(); ++id) {
    if (has_rows[id]) continue;
    EXPECT_EQ(scores.e[at_cluster(id)], 0.0F) << "cluster " << id;
  }
}

TEST_P(ScoreClusters, MatchesReference) {
  for (const float cap : {0.0F, 1.0F, 20.0F}) {
    softcap = cap;
    for (const bool use_spread : {true, false}) {
      Scene scene(usual(), 7);
      Scores scores(scene);
      run(scene, scores, use_spread);
      for (int head = 0; head < scene.shape.num_q_heads; ++head) {
        expect_head(scene, scores, head, use_spread);
      }
    }
  }
}

TEST_P(ScoreClusters, BlocksWithoutRowsScoreNothing) {
  Scene scene(shape({{130, 20}}), 8);  // at most 20 clusters in three blocks
  Scores scores(scene);
  run(scene, scores);
  for (int head = 0; head < scene.shape.num_q_heads; ++head) expect_head(scene, scores, head, true);
}

TEST_P(ScoreClusters, HandlesZeroClusters) {
  Scene scene(shape({}), 9);
  Scores scores(scene);
  run(scene, scores);
}

TEST_P(ScoreClusters, SameBitsHoweverBlocksAreCut) {
  Scene scene(usual(), 10);
  Scores whole(scene);
  run(scene, whole);
  Scores cut(scene);
  const SequenceView view = scene.view(64);
  const RowScores target = cut.view();
  for (int block = view.num_blocks - 1; block >= 0; --block) {
    for (int head = 0; head < scene.shape.num_kv_heads; ++head) {
      score_of(std::get<0>(GetParam()))(params(scene, view, target, true),
                                        {0, head, block, block + 1});
    }
  }
  EXPECT_TRUE(whole.same_bits(cut));
}

TEST_P(ScoreClusters, ReadsTheQueryOfItsPlanRow) {
  Scene scene(usual(), 11);
  Scores want(scene);
  run(scene, want);
  // The same query as the third of a batch, asked for by the second plan row.
  std::vector<float> queries(2 * scene.query.size(), NAN);
  queries.insert(queries.end(), scene.query.begin(), scene.query.end());
  scene.query = queries;
  const SequenceView views[2] = {scene.view(1, 0), scene.view(64, 2)};
  Scores got(scene);
  const RowScores targets[2] = {{}, got.view()};
  ScoreParams p = params(scene, views[0], targets[0], true);
  for (int head = 0; head < scene.shape.num_kv_heads; ++head) {
    score_of(std::get<0>(GetParam()))(p, {1, head, 0, views[1].num_blocks});
  }
  EXPECT_TRUE(want.same_bits(got));
}

TEST_P(ScoreClusters, QueryTokensScoreAsHeadsOfOneGroup) {
  Scene scene(usual(), 13);
  Scores want(scene);
  run(scene, want);
  // The same heads as those of `tokens` tokens with a head a KV head, two tokens into the tensor.
  const int tokens = scene.group();
  const int per_token = scene.shape.num_kv_heads;
  std::vector<float> queries(static_cast<std::size_t>(2 * per_token * scene.shape.op.head_dim),
                             NAN);
  queries.insert(queries.end(), scene.query.begin(), scene.query.end());
  scene.query = queries;
  SequenceView view = scene.view(64, 2);
  view.num_query_tokens = tokens;
  Scores got(scene);
  const RowScores target = got.view();
  ScoreParams p = params(scene, view, target, true);
  p.num_q_heads = per_token;
  for (int head = 0; head < scene.shape.num_kv_heads; ++head) {
    score_of(std::get<0>(GetParam()))(p, {0, head, 0, view.num_blocks});
  }
  EXPECT_TRUE(want.same_bits(got));
}

TEST_P(ScoreClusters, WithoutZWritesTheSameScores) {
  Scene scene(usual(), 12);
  Scores want(scene);
  run(scene, want);
  Scores got(scene);
  const SequenceView view = scene.view(64);
  RowScores target = got.view();
  target.z = nullptr;
  for (int head = 0; head < scene.shape.num_kv_heads; ++head) {
    score_of(std::get<0>(GetParam()))(params(scene, view, target, true),
                                      {0, head, 0, view.num_blocks});
  }
  std::memcpy(got.z.data(), want.z.data(), want.z.size() * 4);
  EXPECT_TRUE(want.same_bits(got));
}

TEST_P(ScoreClusters, NanInOneHeadLeavesTheOthersAlone) {
  Scene scene(usual(), 13);
  Scores want(scene);
  run(scene, want);
  const int bad = scene.shape.num_q_heads - 1;
  scene.query[static_cast<std::size_t>(bad * scene.shape.op.head_dim + 3)] = NAN;
  Scores got(scene);
  run(scene, got);
  const auto g = static_cast<std::size_t>(scene.group());
  for (std::size_t i = 0; i < want.e.size(); ++i) {
    const auto kv_head = i / g / static_cast<std::size_t>(scene.num_clusters());
    const auto member = i / kBlockClusters % g;
    if (kv_head * g + member == static_cast<std::size_t>(bad)) continue;
    ASSERT_EQ(got.e[i], want.e[i]);
    ASSERT_EQ(std::memcmp(&got.z[i], &want.z[i], 4), 0);
  }
}

TEST_P(ScoreClusters, ZeroAndHugeQueriesStayFinite) {
  for (const auto& [factor, cap] :
       {std::pair{0.0F, 0.0F}, {1e-30F, 0.0F}, {1e4F, 0.0F}, {0.0F, 3.0F}, {1e4F, 3.0F}}) {
    softcap = cap;
    Scene scene(usual(), 14);
    for (float& q : scene.query) q *= factor;
    Scores scores(scene);
    run(scene, scores, factor < 1);  // w of a huge query may exceed a float
    for (std::size_t i = 0; i < scores.e.size(); ++i) {
      ASSERT_GE(scores.e[i], 0.0F);
      ASSERT_LE(scores.e[i], 1.0F);
    }
    for (int head = 0; head < scene.shape.num_q_heads; ++head) {
      expect_head(scene, scores, head, factor < 1);
    }
  }
}

TEST(ScoreClustersErrors, RejectsHeadDim72) {
  const SequenceView view{};
  const RowScores scores{};
  ScoreParams params{};
  params.rows = &view;
  params.scores = &scores;
  params.index.head_dim = 72;
  params.num_q_heads = params.num_kv_heads = 1;
  EXPECT_THROW(score_of(Backend::kCpu)(params, {0, 0, 0, 0}), ConfigError);
}

std::string name_of_param(const ::testing::TestParamInfo<Param>& info) {
  const auto& [backend, dtype, dim, heads] = info.param;
  return testing::name_of(backend) + "_" + testing::name_of(dtype) + "_d" + std::to_string(dim) +
         "_q" + std::to_string(heads.q) + "_kv" + std::to_string(heads.kv);
}

INSTANTIATE_TEST_SUITE_P(
    Ops, ScoreClusters,
    ::testing::Combine(::testing::Values(Backend::kCpu),
                       ::testing::Values(IndexDType::kInt8, IndexDType::kBF16, IndexDType::kF32),
                       ::testing::Values(64, 80, 96, 128, 256),
                       ::testing::Values(Heads{2, 2}, Heads{4, 2}, Heads{6, 2}, Heads{4, 1},
                                         Heads{5, 1}, Heads{16, 2}, Heads{12, 1}, Heads{16, 1})),
    name_of_param);

}  // namespace
}  // namespace clusterkv::select
