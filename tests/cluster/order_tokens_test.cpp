// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "tests/cluster/fixture.hpp"

namespace clusterkv::cluster {
namespace {

class OrderTokens : public ::testing::TestWithParam<Backend> {
 protected:
  struct Result {
    std::vector<std::int32_t> order, offset;
  };
  Result run(const std::vector<std::int32_t>& labels, int num_clusters) {
    testing::Guarded<std::int32_t> in(labels);
    testing::Guarded<std::int32_t> order(labels.size());
    testing::Guarded<std::int32_t> offset(static_cast<std::size_t>(num_clusters) + 1);
    ops_of(GetParam())
        .order({in.data(), static_cast<int>(labels.size()), num_clusters, order.data(),
                offset.data()});
    EXPECT_TRUE(order.guards_intact());
    EXPECT_TRUE(offset.guards_intact());
    return {order.copy(), offset.copy()};
  }
};

TEST_P(OrderTokens, MatchesStableSort) {
  Random random(3);
  for (const auto& [n, c] : {std::pair{1, 1}, {7, 3}, {64, 64}, {1000, 9}, {2048, 256}}) {
    std::vector<int> labels;
    for (int i = 0; i < n; ++i) labels.push_back(random.between(0, c - 1));
    const Result got = run(labels, c);
    EXPECT_EQ(got.order, reference::order_of(labels));
    for (int k = 0; k <= c; ++k) {
      const auto below = std::count_if(labels.begin(), labels.end(), [&](int l) { return l < k; });
      EXPECT_EQ(got.offset[static_cast<std::size_t>(k)], below);
    }
  }
}

TEST_P(OrderTokens, EmptyClustersHaveEmptyRuns) {
  const Result got = run({4, 1, 4}, 6);
  EXPECT_EQ(got.order, (std::vector<std::int32_t>{1, 0, 2}));
  EXPECT_EQ(got.offset, (std::vector<std::int32_t>{0, 0, 1, 1, 1, 3, 3}));
}

TEST_P(OrderTokens, HandlesZeroTokens) {
  EXPECT_EQ(run({}, 3).offset, (std::vector<std::int32_t>{0, 0, 0, 0}));
}

INSTANTIATE_TEST_SUITE_P(Ops, OrderTokens, ::testing::Values(Backend::kCpu),
                         [](const auto& p) { return testing::name_of(p.param); });

}  // namespace
}  // namespace clusterkv::cluster
