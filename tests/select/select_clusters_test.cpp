// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/select/fixture.hpp"

namespace clusterkv::select {
namespace {

using testing::Random;

std::vector<int> random_sizes(Random& random, int count) {
  std::vector<int> sizes;
  for (int i = 0; i < count; ++i) sizes.push_back(random.between(1, 3) * random.between(1, 5));
  return sizes;
}

Vec random_scores(Random& random, int count) {
  Vec t;
  for (int i = 0; i < count; ++i) t.push_back(3.0 * double{random.normal()});
  return t;
}

/// Relative distance between votes that fp32 must tell apart for this budget to be decided.
double cut_gap(const Vec& votes, const std::vector<int>& sizes, int budget) {
  const auto taken = reference::choose(votes, sizes, budget);
  double least_whole = INFINITY;
  double cut = NAN;
  double most_out = 0;
  for (std::size_t c = 0; c < votes.size(); ++c) {
    if (taken[c] == sizes[c]) least_whole = std::min(least_whole, votes[c]);
    if (taken[c] > 0 && taken[c] < sizes[c]) cut = votes[c];
    if (taken[c] == 0) most_out = std::max(most_out, votes[c]);
  }
  if (std::isnan(cut)) return (least_whole - most_out) / least_whole;
  return std::min((least_whole - cut) / least_whole, (cut - most_out) / cut);
}

constexpr double kSureGap = 1e-5;  // a vote is a sum of at most 16 fp32 products

struct Size {
  int clusters;
  int group;
};
class SelectClusters : public ::testing::TestWithParam<Size> {};

TEST_P(SelectClusters, SharedVotesMatchSorting) {
  const auto [n, group] = GetParam();
  Random random(static_cast<std::uint64_t>(n * 100 + group));
  Plant plant;
  plant.sizes = random_sizes(random, n);
  for (int g = 0; g < group; ++g) plant.t.push_back(random_scores(random, n));
  if (n > 70) plant.segments = {n / 3, n - n / 3};
  Planted planted(plant);
  const Vec votes = reference::votes(plant.t, plant.sizes);
  const int total = planted.total_rows();
  int sure = 0;
  for (int i = 0; i < 24; ++i) {
    const int budget = i == 0 ? 1 : i == 1 ? total : i == 2 ? total + 7 : random.between(1, total);
    if (budget < total && cut_gap(votes, plant.sizes, budget) < kSureGap) continue;
    ++sure;
    EXPECT_EQ(planted.select_shared(budget), planted.expect(votes, budget)) << "budget " << budget;
  }
  EXPECT_GE(sure, 12);
  for (int g = 0; g < group; ++g) {
    const Vec& t = plant.t[static_cast<std::size_t>(g)];
    const double max = *std::max_element(t.begin(), t.end());
    double mass = 0;
    for (std::size_t c = 0; c < t.size(); ++c) mass += plant.sizes[c] * std::exp2(t[c] - max);
    EXPECT_EQ(planted.totals(g).max, static_cast<float>(max));
    EXPECT_NEAR(planted.totals(g).mass, mass, 1e-5 * mass);
  }
}

TEST_P(SelectClusters, EachQueryHeadMatchesSortingExactly) {
  const auto [n, group] = GetParam();
  Random random(static_cast<std::uint64_t>(n * 100 + group + 50));
  Plant plant;
  plant.sizes = random_sizes(random, n);
  // Rounded to quarters, so that ties abound; negative scores too.
  for (int g = 0; g < group; ++g) {
    plant.t.push_back(random_scores(random, n));
    for (double& t : plant.t.back()) t = std::round(4 * t) / 4 + 0.0;  // no -0
  }
  Planted planted(plant);
  for (int head = 0; head < group; ++head) {
    for (int i = 0; i < 6; ++i) {
      const int budget = random.between(1, planted.total_rows());
      EXPECT_EQ(planted.select(head, budget, HeadGrouping::kPerQueryHead),
                planted.expect(plant.t[static_cast<std::size_t>(head)], budget));
    }
  }
}

std::string name_of_size(const ::testing::TestParamInfo<Size>& info) {
  return "cpu_n" + std::to_string(info.param.clusters) + "_g" + std::to_string(info.param.group);
}

INSTANTIATE_TEST_SUITE_P(Ops, SelectClusters,
                         ::testing::Values(Size{1, 1}, Size{2, 1}, Size{63, 1}, Size{64, 1},
                                           Size{65, 1}, Size{200, 1}, Size{256, 1}, Size{257, 1},
                                           Size{400, 1}, Size{511, 1}, Size{512, 1}, Size{1365, 1},
                                           Size{8192, 1}, Size{65, 2}, Size{200, 3}, Size{257, 4},
                                           Size{100, 5}, Size{400, 8}, Size{511, 12}, Size{300, 16},
                                           Size{1365, 4}),
                         name_of_size);

TEST(SelectClustersRule, AllOrdersOfUpToSixClustersForAllBudgets) {
  for (int n = 1; n <= 6; ++n) {
    Vec t;
    for (int i = 0; i < n; ++i) t.push_back(i);
    do {
      Plant plant;
      for (int i = 0; i < n; ++i) plant.sizes.push_back(1 + (i * 7 + n) % 3);
      plant.t = {t};
      if (n > 2) plant.segments = {2, n - 2};
      Planted planted(plant);
      for (int budget = 1; budget <= planted.total_rows() + 1; ++budget) {
        ASSERT_EQ(planted.select_shared(budget), planted.expect(t, budget));
        ASSERT_EQ(planted.select(0, budget, HeadGrouping::kPerQueryHead),
                  planted.expect(t, budget));
      }
    } while (std::next_permutation(t.begin(), t.end()));
  }
}

// Powers of two are exact all the way, so equal scores are equal votes in any block.
TEST(SelectClustersRule, BreaksTiesByLowestId) {
  for (int code = 0; code < 3 * 3 * 3 * 3 * 3; ++code) {
    Plant plant;
    plant.sizes = {2, 1, 3, 2, 1};
    plant.segments = {2, 3};
    Vec t;
    for (int i = 0, rest = code; i < 5; ++i, rest /= 3) t.push_back(rest % 3);
    plant.t = {t};
    Planted planted(plant);
    for (int budget = 1; budget <= 9; ++budget) {
      ASSERT_EQ(planted.select_shared(budget), planted.expect(t, budget)) << code;
    }
  }
}

TEST(SelectClustersRule, AllEqualScoresTakeTheFirstRows) {
  Plant plant{std::vector<int>(300, 4), {Vec(300), Vec(300)}, 1, {}};
  Planted planted(plant);
  for (const int budget : {1, 4, 6, 255, 256, 257, 1199, 1200}) {
    EXPECT_EQ(planted.select_shared(budget), planted.expect(Vec(300), budget));
  }
}

TEST(SelectClustersRule, TrimsTheLastClusterToItsFirstRows) {
  Planted planted({{5, 5, 5}, {{1.0, 3.0, 2.0}}, 1, {}});
  const List got = planted.select_shared(7);
  EXPECT_EQ(got.clusters, (std::vector<std::pair<int, int>>{{1, 5}, {2, 2}}));
  EXPECT_EQ(got.num_rows, 7);
}

TEST(SelectClustersRule, ExactlyMinBudgetRows) {
  Random random(77);
  Plant plant;
  plant.sizes = random_sizes(random, 150);
  plant.t = {random_scores(random, 150), random_scores(random, 150)};
  Planted planted(plant);
  for (int budget = 1; budget < planted.total_rows() + 4; budget += 7) {
    EXPECT_EQ(planted.select_shared(budget).num_rows, std::min(budget, planted.total_rows()));
  }
}

TEST(SelectClustersRule, ClustersWithoutRowsAreNeverListed) {
  Plant plant;
  plant.sizes = {3, 2, 0, 0, 4, 1, 0};
  plant.segments = {4, 3};
  plant.t = {{0, 1, 9, 9, 2, 3, 9}};
  Planted planted(plant);
  for (int budget = 1; budget <= 10; ++budget) {
    EXPECT_EQ(planted.select_shared(budget), planted.expect(plant.t[0], budget));
  }
}

// Votes that underflow to 0 still fill the budget, after all others, by id.
TEST(SelectClustersRule, ClustersFarBelowTheBestStillFillTheBudget) {
  Plant plant{std::vector<int>(100, 2), {Vec(100, -500.0)}, 1, {30, 70}};
  plant.t[0][77] = 500.0;
  plant.t[0][50] = 499.0;
  Planted planted(plant);
  for (const int budget : {1, 2, 3, 4, 5, 100, 199, 200}) {
    EXPECT_EQ(planted.select_shared(budget), planted.expect(plant.t[0], budget));
  }
}

TEST(SelectClustersRule, ScoresOfTenThousandDoNotOverflow) {
  Plant plant{{1, 1, 1, 1}, {{1e4, -1e4, 1e4 - 1, 0}, {-1e4, 1e4, 0, 0}}, 1, {2, 2}};
  Planted planted(plant);
  // Votes: 1/(1 + 1/2), 1, 1/2/(1 + 1/2), 0.
  EXPECT_EQ(planted.select_shared(1).clusters, (std::vector<std::pair<int, int>>{{1, 1}}));
  EXPECT_EQ(planted.select_shared(2).clusters, (std::vector<std::pair<int, int>>{{0, 1}, {1, 1}}));
  EXPECT_EQ(planted.totals(0).max, 1e4F);
  EXPECT_NEAR(planted.totals(0).mass, 1.5, 1e-6);
}

// Each KV head has heads with wishes of their own; a vote that mixed up heads would miss them.
TEST(SelectClustersRule, GroupsVoteForTheirOwnPlantedClusters) {
  for (const int group : {1, 2, 3, 4, 5, 8, 12, 16}) {
    for (const int kv_heads : {1, 3}) {
      Plant plant{std::vector<int>(200, 3), {}, kv_heads, {}};
      std::vector<std::vector<int>> want(static_cast<std::size_t>(kv_heads));
      for (int head = 0; head < group * kv_heads; ++head) {
        const int wish = (head * 37 + 11) % 200;
        plant.t.emplace_back(200);
        plant.t.back()[static_cast<std::size_t>(wish)] = 20 + 0.1 * head;
        want[static_cast<std::size_t>(head / group)].push_back(wish);
      }
      Planted planted(plant);
      if (group % 4 == 0) planted.query_tokens = group / 2;
      for (int kv = 0; kv < kv_heads; ++kv) {
        auto& ids = want[static_cast<std::size_t>(kv)];
        std::sort(ids.begin(), ids.end());
        List expected{{}, 3 * group};
        for (const int id : ids) expected.clusters.emplace_back(id, 3);
        EXPECT_EQ(planted.select(kv, 3 * group, HeadGrouping::kShared), expected) << group;
        for (int head = kv * group; head < (kv + 1) * group; ++head) {
          EXPECT_EQ(planted.totals(head).max, static_cast<float>(20 + 0.1 * head));
        }
      }
    }
  }
}

TEST(SelectClustersRule, EverythingTakesAllRows) {
  Random random(5);
  Plant plant;
  plant.sizes = random_sizes(random, 90);
  plant.t = {random_scores(random, 90), random_scores(random, 90)};
  Planted planted(plant);
  const List all = planted.expect(Vec(90), planted.total_rows());
  EXPECT_EQ(planted.select(0, 5, HeadGrouping::kShared, true), all);
  EXPECT_EQ(planted.select(1, 5, HeadGrouping::kPerQueryHead, true), all);
}

TEST(SelectClustersRule, HandlesZeroClusters) {
  Planted planted({{}, {{}, {}}, 1, {}});
  EXPECT_EQ(planted.select_shared(10), (List{{}, 0}));
  EXPECT_EQ(planted.totals(0).max, -INFINITY);
  EXPECT_EQ(planted.totals(1).mass, 0.0F);
}

TEST(SelectClustersRule, NanNeverWins) {
  Plant plant{{2, 2, 2, 2}, {{1, 2, 3, 4}}, 1, {}};
  Planted planted(plant);
  planted.e[planted.at(0, 3)] = NAN;
  planted.z[planted.at(0, 3)] = NAN;
  for (const HeadGrouping grouping : {HeadGrouping::kShared, HeadGrouping::kPerQueryHead}) {
    for (int budget = 1; budget <= 8; ++budget) {
      EXPECT_EQ(planted.select(0, budget, grouping), planted.expect({1, 2, 3, NAN}, budget));
    }
  }
}

TEST(SelectClustersRule, OnlyNanScoresStillGiveTheBudgetByLowestId) {
  Plant plant{std::vector<int>(130, 3), {Vec(130)}, 1, {}};
  Planted planted(plant);
  for (std::size_t c = 0; c < 130; ++c)
    planted.e[planted.at(0, c)] = planted.z[planted.at(0, c)] = NAN;
  for (int b = 0; b < 3; ++b) planted.sums[planted.sums_at(0, b)] = {NAN, NAN, NAN};
  EXPECT_EQ(planted.select_shared(100), planted.expect(Vec(130), 100));
  EXPECT_EQ(planted.select(0, 100, HeadGrouping::kPerQueryHead), planted.expect(Vec(130), 100));
}

TEST(SelectClustersRule, MinusInfinityIsAboveNanAndBelowAllElse) {
  Plant plant{{1, 1, 1, 1}, {{0, 0, 0, 0}}, 1, {}};
  Planted planted(plant);
  const float z[] = {NAN, -INFINITY, -3e38F, INFINITY};
  for (std::size_t c = 0; c < 4; ++c) planted.z[planted.at(0, c)] = z[c];
  for (int budget = 1; budget <= 4; ++budget) {
    EXPECT_EQ(planted.select(0, budget, HeadGrouping::kPerQueryHead),
              planted.expect({-4, -3, -2, -1}, budget));
  }
}

TEST(CombineBlocks, MatchesReferenceOverAnyNumberOfBlocks) {
  Random random(9);
  for (const int n : {1, 64, 65, 640, 64 * 33 + 5}) {
    Plant plant;
    plant.sizes = random_sizes(random, n);
    for (int head = 0; head < 6; ++head) plant.t.push_back(random_scores(random, n));
    plant.num_kv_heads = 2;
    Planted planted(plant);
    for (int head = 0; head < 6; ++head) {
      const Vec& t = plant.t[static_cast<std::size_t>(head)];
      const double max = *std::max_element(t.begin(), t.end());
      double sum = 0;
      double mass = 0;
      for (std::size_t c = 0; c < t.size(); ++c) {
        sum += std::exp2(t[c] - max);
        mass += plant.sizes[c] * std::exp2(t[c] - max);
      }
      const HeadTotals got =
          ops_of(Backend::kCpu)
              .combine_blocks(planted.view(1), planted.scores(), head / 3, 3, head % 3);
      EXPECT_EQ(got.max, static_cast<float>(max));
      EXPECT_NEAR(got.sum, sum, 1e-6 * sum);
      EXPECT_NEAR(got.mass, mass, 1e-6 * mass);
    }
  }
}

}  // namespace
}  // namespace clusterkv::select
