// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "clusterkv/error.hpp"
#include "tests/cluster/fixture.hpp"
#include "tests/support/compare.hpp"

namespace clusterkv::cluster {
namespace {

class UpdateCentroids : public ::testing::TestWithParam<OpCase> {
 protected:
  /// Centroids after one update; `before` is what they were.
  std::vector<float> update(const Keys& keys, const std::vector<int>& labels,
                            const std::vector<float>& before) {
    const std::vector<int> order = reference::order_of(labels);
    const int c = static_cast<int>(before.size()) / dim();
    std::vector<std::int32_t> offset;
    for (int k = 0; k <= c; ++k) {
      offset.push_back(static_cast<std::int32_t>(
          std::count_if(labels.begin(), labels.end(), [&](int l) { return l < k; })));
    }
    testing::Guarded<float> centroids(before);
    ops_of(GetParam().backend).update({keys.run, c, order.data(), offset.data(), centroids.data()});
    EXPECT_TRUE(centroids.guards_intact());
    return centroids.copy();
  }
  std::vector<int> random_labels(int n, int c) {
    std::vector<int> labels;
    for (int i = 0; i < n; ++i) labels.push_back(random.between(0, c - 1));
    return labels;
  }
  std::vector<float> nothing(int c) const {
    return std::vector<float>(static_cast<std::size_t>(c * dim()), -99.0F);
  }
  int dim() const { return GetParam().head_dim; }

  Random random{23};
};

TEST_P(UpdateCentroids, MatchesReference) {
  for (const auto& [n, c] : {std::pair{1, 1}, {40, 5}, {300, 37}}) {
    const Keys keys(GetParam(), normal_rows(random, n, dim()), random);
    const std::vector<int> labels = random_labels(n, c);
    const std::vector<Vec> old(static_cast<std::size_t>(c),
                               Vec(static_cast<std::size_t>(dim()), -99.0));
    const auto want = reference::update(keys.exact, labels, old);
    const auto got = update(keys, labels, nothing(c));
    for (std::size_t k = 0; k < want.size(); ++k) {
      const std::span row(got.data() + k * want[k].size(), want[k].size());
      EXPECT_LT(testing::max_error(row, want[k]), 1e-6);  // an fp32 sum of at most 60 keys
    }
  }
}

TEST_P(UpdateCentroids, EmptyClustersKeepTheirCentroid) {
  const Keys keys(GetParam(), integer_rows(random, 6, dim(), 3), random);
  const auto got = update(keys, {3, 3, 1, 1, 1, 3}, nothing(5));
  for (const int c : {0, 2, 4}) {
    for (int d = 0; d < dim(); ++d) EXPECT_EQ(got[static_cast<std::size_t>(c * dim() + d)], -99.0F);
  }
}

// The order is the rule, whatever the number of threads: for a power of two of keys the division is
// exact and the bits are those of the plain sum.
TEST_P(UpdateCentroids, SumsInTokenOrder) {
  const Keys keys(GetParam(), normal_rows(random, 128, dim()), random);
  const auto got = update(keys, std::vector<int>(128, 0), nothing(1));
  for (std::size_t d = 0; d < static_cast<std::size_t>(dim()); ++d) {
    float sum = 0;
    for (const Vec& key : keys.exact) sum = sum + static_cast<float>(key[d]);
    EXPECT_EQ(got[d], sum / 128);
  }
}

// 5000 keys with channel mean 12 sum to 60000: an f16 sum would be wrong or infinite.
TEST_P(UpdateCentroids, FiveThousandKeysWithAMeanOfTwelveAreExact) {
  const int n = 5000;
  auto rows = integer_rows(random, n, dim(), 2);
  Vec sum(static_cast<std::size_t>(dim()));
  for (Vec& row : rows) {
    for (std::size_t d = 0; d < row.size(); ++d) {
      row[d] += d % 3 == 0 ? 12 : -13;
      sum[d] += row[d];
    }
  }
  const auto got = update(Keys(GetParam(), rows, random), std::vector<int>(n, 1), nothing(2));
  for (std::size_t d = 0; d < sum.size(); ++d) {
    const auto want = static_cast<float>(sum[d] / n);  // sums below 2^24: exact; one division
    EXPECT_NEAR(got[d + sum.size()], want, std::abs(want) * 0x1p-23F);
  }
}

TEST_P(UpdateCentroids, NanStaysInItsCluster) {
  auto rows = integer_rows(random, 8, dim(), 3);
  rows[2][7] = NAN;
  const Keys keys(GetParam(), rows, random);
  const auto got = update(keys, {0, 0, 1, 1, 2, 2, 2, 2}, nothing(3));
  for (std::size_t i = 0; i < got.size(); ++i) {
    const bool poisoned = i == static_cast<std::size_t>(dim()) + 7;
    EXPECT_EQ(std::isnan(got[i]), poisoned) << i;
  }
}

TEST(UpdateCentroidsErrors, RejectsHeadDim72) {
  UpdateParams params{};
  params.keys.store.head_dim = 72;
  EXPECT_THROW(ops_of(Backend::kCpu).update(params), ConfigError);
}

INSTANTIATE_TEST_SUITE_P(Ops, UpdateCentroids, ::testing::ValuesIn(testing::op_cases()),
                         [](const auto& c) { return testing::name_of(c.param); });

}  // namespace
}  // namespace clusterkv::cluster
