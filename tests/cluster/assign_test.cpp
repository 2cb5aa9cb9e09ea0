// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "clusterkv/error.hpp"
#include "tests/cluster/fixture.hpp"

namespace clusterkv::cluster {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Centroids in panels, built from the contract and not by pack_centroids.
struct Panels {
  Panels(const std::vector<Vec>& rows, const Vec& biases) {
    const std::size_t dim = rows.front().size();
    const std::size_t count = (rows.size() + kPanel - 1) / kPanel;
    centroids = testing::Guarded<float>(std::vector<float>(count * dim * kPanel, 0.0F));
    bias = testing::Guarded<float>(std::vector<float>(count * kPanel, kInfinity));
    for (std::size_t c = 0; c < rows.size(); ++c) {
      bias[c] = static_cast<float>(biases[c]);
      for (std::size_t d = 0; d < dim; ++d) {
        centroids[(c / kPanel * dim + d) * kPanel + c % kPanel] = static_cast<float>(rows[c][d]);
      }
    }
  }
  testing::Guarded<float> centroids, bias;
};

class Assign : public ::testing::TestWithParam<OpCase> {
 protected:
  std::vector<int> labels(const std::vector<Vec>& keys, const std::vector<Vec>& centroids,
                          const Vec& bias) {
    const Keys run(GetParam(), keys, random);
    Panels panels(centroids, bias);
    testing::Guarded<std::int32_t> out(keys.size());
    ops_of(GetParam().backend)
        .assign({run.run, static_cast<int>(centroids.size()), panels.centroids.data(),
                 panels.bias.data(), out.data()});
    EXPECT_TRUE(out.guards_intact());
    return out.copy();
  }
  int dim() const { return GetParam().head_dim; }

  Random random{17};
};

const std::pair<int, int> kShapes[] = {{1, 1}, {5, 3}, {37, 8}, {64, 9}, {257, 40}, {70, 129}};

TEST_P(Assign, MatchesReferenceExactlyOnIntegers) {
  for (const auto& [n, c] : kShapes) {
    const auto keys = integer_rows(random, n, dim(), 2);
    const auto centroids = integer_rows(random, c, dim(), 1);
    Vec bias;
    for (int i = 0; i < c; ++i) bias.push_back(random.between(-4, 4) / 2.0);
    EXPECT_EQ(labels(keys, centroids, bias), reference::assign(keys, centroids, bias).labels)
        << n << " tokens, " << c << " clusters";
  }
}

// Gaussian scores: a label may differ from the exact one only where the two scores agree to 1e-5 of
// |k||c|, many times the rounding of a sum of 256 products.
TEST_P(Assign, MatchesReferenceUpToNearTies) {
  const int c = 67;
  const auto centroids = normal_rows(random, c, dim());
  const auto keys = Keys(GetParam(), normal_rows(random, 200, dim()), random).exact;
  const Vec bias(static_cast<std::size_t>(c), 0.25);
  const auto want = reference::assign(keys, centroids, bias).labels;
  const auto got = labels(keys, centroids, bias);
  int different = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const Vec& best = centroids[static_cast<std::size_t>(want[i])];
    const Vec& other = centroids.at(static_cast<std::size_t>(got[i]));
    const double size = std::sqrt(reference::dot(keys[i], keys[i]) * reference::dot(best, best));
    different += got[i] != want[i];
    EXPECT_LE(reference::dot(keys[i], best) - reference::dot(keys[i], other), 1e-5 * size);
  }
  EXPECT_LE(different, 1);
}

TEST_P(Assign, BreaksTiesByLowestId) {
  auto centroids = integer_rows(random, 30, dim(), 1);
  for (const std::size_t copy : {9U, 17U, 29U}) centroids[copy] = centroids[5];
  const auto got = labels({centroids[5], centroids[29]}, centroids, Vec(30));
  EXPECT_EQ(got, (std::vector<int>{5, 5}));
}

TEST_P(Assign, ZeroKeysGoToClusterZero) {
  const Vec zero(static_cast<std::size_t>(dim()));
  EXPECT_EQ(labels({zero, zero, zero}, integer_rows(random, 20, dim(), 3), Vec(20)),
            (std::vector<int>{0, 0, 0}));
}

TEST_P(Assign, PaddingNeverWins) {
  for (const int c : {1, 7, 9}) {  // all scores far below the padding's 0
    const std::vector<Vec> centroids(static_cast<std::size_t>(c),
                                     Vec(static_cast<std::size_t>(dim()), -1.0));
    const auto got = labels({Vec(static_cast<std::size_t>(dim()), 1.0)}, centroids,
                            Vec(static_cast<std::size_t>(c)));
    EXPECT_EQ(got, std::vector<int>{0});
  }
}

TEST_P(Assign, NanNeverWins) {
  auto centroids = integer_rows(random, 12, dim(), 1);
  centroids[0] = centroids[4] = Vec(static_cast<std::size_t>(dim()), NAN);
  const Vec key(static_cast<std::size_t>(dim()), 1.0);
  auto finite = centroids;
  finite[0] = finite[4] = Vec(static_cast<std::size_t>(dim()), -2.0);  // surely the worst
  EXPECT_EQ(labels({key}, centroids, Vec(12)), labels({key}, finite, Vec(12)));
}

TEST_P(Assign, NanKeysGetAClusterThatExists) {
  Vec some(static_cast<std::size_t>(dim()), 1.0);
  some[3] = NAN;
  Vec infinite(static_cast<std::size_t>(dim()), 1.0);
  infinite[5] = -INFINITY;
  for (const int label : labels({some, infinite, Vec(static_cast<std::size_t>(dim()), NAN)},
                                integer_rows(random, 11, dim(), 3), Vec(11))) {
    EXPECT_GE(label, 0);
    EXPECT_LT(label, 11);
  }
}

TEST_P(Assign, SameLabelsHoweverTheRunIsCut) {
  const auto keys = normal_rows(random, 131, dim());
  const auto centroids = normal_rows(random, 21, dim());
  const auto whole = labels(keys, centroids, Vec(21));
  for (std::size_t i = 0; i < keys.size(); i += 13) {
    EXPECT_EQ(labels({keys[i]}, centroids, Vec(21)).front(), whole[i]);
  }
}

TEST(AssignErrors, RejectsHeadDim72) {
  AssignParams params{};
  params.keys.store.head_dim = 72;
  EXPECT_THROW(ops_of(Backend::kCpu).assign(params), ConfigError);
}

INSTANTIATE_TEST_SUITE_P(Ops, Assign, ::testing::ValuesIn(testing::op_cases()),
                         [](const auto& c) { return testing::name_of(c.param); });

}  // namespace
}  // namespace clusterkv::cluster
