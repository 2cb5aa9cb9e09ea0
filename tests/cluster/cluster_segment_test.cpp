// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/cluster/rules.hpp"
#include "tests/cluster/fixture.hpp"

namespace clusterkv::cluster {
namespace {

struct Result {
  std::vector<std::int32_t> labels, order, offset;
  bool operator==(const Result&) const = default;
};

class ClusterSegment : public ::testing::TestWithParam<OpCase> {
 protected:
  Result cluster(const Keys& keys, int c, Metric metric = Metric::kCosine, int iterations = 4,
                 std::uint64_t seed = 0) {
    const int n = keys.run.num_tokens;
    GuardedBytes memory(segment_scratch_bytes(n, c, dim()) + 64);
    const auto misaligned = reinterpret_cast<std::uintptr_t>(memory.data()) % 64;
    std::byte* aligned = memory.data() + (misaligned == 0 ? 0 : 64 - misaligned);
    const SegmentScratch s = carve_segment_scratch(aligned, n, c, dim());
    ops_of(GetParam().backend).segment({keys.run, c, metric, iterations, seed != 0, seed}, s);
    EXPECT_TRUE(memory.guards_intact());
    Result r{{s.labels, s.labels + n}, {s.order, s.order + n}, {s.offset, s.offset + c + 1}};
    expect_consistent(r, n, c);
    return r;
  }
  static void expect_consistent(const Result& r, int n, int c) {
    for (const int label : r.labels) {
      ASSERT_GE(label, 0);
      ASSERT_LT(label, c);
    }
    EXPECT_EQ(r.order, reference::order_of(r.labels));
    EXPECT_EQ(r.offset.front(), 0);
    EXPECT_EQ(r.offset.back(), n);
    for (int k = 0; k < c; ++k) {
      EXPECT_EQ(r.offset[static_cast<std::size_t>(k) + 1] - r.offset[static_cast<std::size_t>(k)],
                std::count(r.labels.begin(), r.labels.end(), k));
    }
  }
  static std::vector<int> even_starts(int n, int c) {
    std::vector<int> starts;
    for (int i = 0; i < c; ++i) starts.push_back(i * n / c);  // floor(i n / C), from the spec
    return starts;
  }
  int dim() const { return GetParam().head_dim; }

  Random random{29};
};

constexpr int kTokens = 160;
constexpr int kClusters = 20;

/// Keys whose decisions the reference is sure of, and its labels: fp32 errors of a score are a few
/// 1e-6 of the largest, closer decisions are nobody's fault and are drawn again.
std::pair<std::vector<Vec>, std::vector<int>> sure_keys(const OpCase& op, Random& random,
                                                        const std::vector<int>& starts,
                                                        Metric metric, int iterations) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    const Keys keys(op, testing::clustered_rows(random, kTokens, op.head_dim, 12, 3.0), random);
    const auto want = reference::kmeans(keys.exact, starts, metric, iterations);
    if (want.smallest_gap > 1e-5) return {keys.exact, want.labels};
  }
  ADD_FAILURE() << "no keys to be sure of";
  return {};
}

TEST_P(ClusterSegment, MatchesReferenceForAllMetrics) {
  for (const Metric metric : {Metric::kCosine, Metric::kL2, Metric::kInnerProduct}) {
    for (const int iterations : {1, 4}) {
      SCOPED_TRACE(static_cast<int>(metric) * 100 + iterations);
      const auto [rows, labels] =
          sure_keys(GetParam(), random, even_starts(kTokens, kClusters), metric, iterations);
      const Keys keys(GetParam(), rows, random);
      EXPECT_EQ(cluster(keys, kClusters, metric, iterations).labels, labels);
    }
  }
}

TEST_P(ClusterSegment, StartsFromTheSeededTokens) {
  const std::uint64_t seed = start_seed(7, 2, 1, 16);
  std::vector<int> starts(static_cast<std::size_t>(kTokens));
  random_starts(seed, kTokens, kClusters, starts.data());
  starts.resize(static_cast<std::size_t>(kClusters));
  const auto [rows, labels] = sure_keys(GetParam(), random, starts, Metric::kCosine, 3);
  EXPECT_EQ(cluster(Keys(GetParam(), rows, random), kClusters, Metric::kCosine, 3, seed).labels,
            labels);
}

TEST_P(ClusterSegment, OneTokenAndOneCluster) {
  const Keys one(GetParam(), normal_rows(random, 1, dim()), random);
  EXPECT_EQ(cluster(one, 1).labels, std::vector<int>{0});
  const Keys many(GetParam(), normal_rows(random, 33, dim()), random);
  EXPECT_EQ(cluster(many, 1).labels, std::vector<int>(33, 0));
}

TEST_P(ClusterSegment, AsManyClustersAsTokensKeepsThemApart) {
  const int n = 24;  // each token is its own start, and distinct directions stay with themselves
  std::vector<Vec> rows;
  for (int i = 0; i < n; ++i) {
    rows.emplace_back(static_cast<std::size_t>(dim()));
    rows.back()[static_cast<std::size_t>(i)] = 1.0 + i;
  }
  std::vector<int> want(static_cast<std::size_t>(n));
  std::iota(want.begin(), want.end(), 0);
  EXPECT_EQ(cluster(Keys(GetParam(), rows, random), n).labels, want);
}

TEST_P(ClusterSegment, ConstantKeysAllGoToClusterZero) {
  const std::vector<Vec> rows(50, Vec(static_cast<std::size_t>(dim()), 1.5));
  for (const Metric metric : {Metric::kCosine, Metric::kL2, Metric::kInnerProduct}) {
    EXPECT_EQ(cluster(Keys(GetParam(), rows, random), 7, metric).labels, std::vector<int>(50, 0));
  }
}

TEST_P(ClusterSegment, ZeroKeysGoToClusterZeroAndHarmNobody) {
  auto rows = testing::clustered_rows(random, 60, dim(), 4, 0.0);
  for (const std::size_t i : {0U, 13U, 59U}) rows[i] = Vec(static_cast<std::size_t>(dim()));
  const Result got = cluster(Keys(GetParam(), rows, random), 6);
  for (const std::size_t i : {0U, 13U, 59U}) EXPECT_EQ(got.labels[i], 0);
  EXPECT_NE(got.labels[1], got.labels[13]);
}

// Two directions that differ in sign everywhere but in channels of mean 12: sums reach 60000.
TEST_P(ClusterSegment, FiveThousandKeysWithAChannelMeanOfTwelve) {
  const int n = 5000;
  auto rows = integer_rows(random, n, dim(), 1);
  std::vector<int> want;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const bool odd = i >= rows.size() / 2;
    want.push_back(odd ? 1 : 0);
    for (std::size_t d = 0; d < rows[i].size(); ++d) {
      rows[i][d] += d % 16 == 0 ? 12 : odd ? 4 : -4;
    }
  }
  EXPECT_EQ(cluster(Keys(GetParam(), rows, random), 2).labels, want);
}

TEST_P(ClusterSegment, NanKeysTouchNothingOutside) {
  auto rows = normal_rows(random, 64, dim());
  for (std::size_t i = 0; i < rows.size(); i += 5) rows[i] = Vec(rows[i].size(), NAN);
  rows[1][2] = INFINITY;
  rows[2][3] = -INFINITY;
  for (const Metric metric : {Metric::kCosine, Metric::kL2, Metric::kInnerProduct}) {
    cluster(Keys(GetParam(), rows, random), 8, metric);  // guards and ranges are checked there
  }
}

TEST_P(ClusterSegment, SameBitsOnEveryRun) {
  const auto rows = normal_rows(random, 200, dim());
  const Keys first(GetParam(), rows, random);
  const Keys moved(GetParam(), rows, random);  // other pages
  EXPECT_EQ(cluster(first, 25), cluster(first, 25));
  EXPECT_EQ(cluster(first, 25), cluster(moved, 25));
}

TEST_P(ClusterSegment, IterationsNeverLoseCosine) {
  const Keys keys(GetParam(), normal_rows(random, 200, dim()), random);
  const auto cost = [&](int iterations) {
    const Result r = cluster(keys, 25, Metric::kCosine, iterations);
    const auto centroids = reference::update(
        keys.exact, r.labels, std::vector<Vec>(25, Vec(static_cast<std::size_t>(dim()))));
    const auto packed = reference::pack(centroids, Metric::kCosine);
    double sum = 0;
    for (std::size_t i = 0; i < keys.exact.size(); ++i) {
      sum += reference::dot(keys.exact[i], packed.centroids[static_cast<std::size_t>(r.labels[i])]);
    }
    return sum;
  };
  const double rounding = 1e-6 * cost(1);
  EXPECT_GE(cost(2), cost(1) - rounding);
  EXPECT_GE(cost(4), cost(2) - rounding);
  EXPECT_GE(cost(8), cost(4) - rounding);
}

INSTANTIATE_TEST_SUITE_P(Ops, ClusterSegment, ::testing::ValuesIn(testing::op_cases()),
                         [](const auto& c) { return testing::name_of(c.param); });

}  // namespace
}  // namespace clusterkv::cluster
