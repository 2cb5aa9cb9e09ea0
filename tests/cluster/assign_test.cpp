// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
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
    testing::GuardedBytes tiles(assign_tiles_bytes(static_cast<int>(centroids.size()), dim()));
    ops_of(GetParam().backend)
        .assign({run.run, static_cast<int>(centroids.size()), panels.centroids.data(),
                 panels.bias.data(), out.data(), tiles.data()});
    EXPECT_TRUE(out.guards_intact() && tiles.guards_intact());
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
    EXPECT_EQ(labels(keys, centroids, bias), reference::assign(keys, {centroids, bias}).labels)
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
  const auto want = reference::assign(keys, {centroids, bias}).labels;
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

// Matrix units only say which clusters can be the best of a key: the sums that decide are the same.
TEST_P(Assign, SameLabelsWhateverMultiplies) {
  if (!is_offered(Isa::kAvx512)) GTEST_SKIP() << "nothing to compare";
  constexpr int kTokens = 300, kClusters = 75;
  auto centroids = normal_rows(random, kClusters, dim());
  for (const auto& [c, other] : {std::pair{0, 1}, {0, 2}, {4, 5}, {8, 24}, {32, 33}, {40, 56}}) {
    centroids.at(other) = centroids.at(c);
    if (other == 2) continue;  // the same; the others up to their last bits
    for (double& x : centroids.at(other)) x *= 1 + random.between(-8, 8) * 0x1p-22;
  }
  auto keys = normal_rows(random, kTokens, dim());
  for (std::size_t i = 0; i < keys.size(); i += 2) keys[i] = centroids[i % kClusters];
  for (std::size_t i = 21; i < 61; i += 2) {
    for (double& x : keys[i]) x *= 1e-38;  // matrix units take some products for 0
  }
  for (double& x : keys[6]) x *= 1e30;  // f16 has none
  keys[7][3] = NAN;
  keys[8][3] = INFINITY;
  const Keys run(GetParam(), keys, random);
  const auto all_bits_nan = std::bit_cast<float>(0x7fffffffU);
  for (const float unlike : {0.0F, all_bits_nan, INFINITY, 1e-35F, 1e25F}) {
    if (unlike != 0.0F) centroids.back() = Vec(static_cast<std::size_t>(dim()), unlike);
    Vec bias(kClusters);
    if (std::isnan(unlike)) bias.back() = -1000;  // best of all, were it a number
    Panels panels(centroids, bias);
    std::vector<std::int32_t> wanted;
    for (const Isa isa : {Isa::kAvx512, Isa::kAmx}) {
      if (!is_offered(isa)) continue;
      testing::Guarded<std::int32_t> labels(kTokens);
      testing::GuardedBytes tiles(assign_tiles_bytes(kClusters, dim()));
      clusterkv::ops_of<CpuOps>(isa).assign({run.run, kClusters, panels.centroids.data(),
                                             panels.bias.data(), labels.data(), tiles.data()});
      EXPECT_TRUE(labels.guards_intact() && tiles.guards_intact());
      if (isa == Isa::kAvx512) wanted = labels.copy();
      EXPECT_EQ(labels.copy(), wanted) << name_of(isa) << ", a centroid of " << unlike;
    }
  }
}

#ifdef __x86_64__
struct alignas(64) TileShapes {
  std::uint8_t bytes[64] = {};
};
[[gnu::target("amx-tile")]] void set_tile_shapes(const TileShapes* shapes) {
  asm volatile("ldtilecfg %0" : : "m"(*shapes));
}
[[gnu::target("amx-tile")]] void get_tile_shapes(TileShapes* shapes) {
  asm volatile("sttilecfg %0" : "=m"(*shapes));
}

// An engine with kernels of its own for matrix units may set the shapes of its tiles once a thread.
TEST(AssignTiles, GivesTheCallersShapesBack) {
  if (!is_offered(Isa::kAmx)) GTEST_SKIP() << "no matrix units";
  Random random(3);
  const Keys run({Backend::kCpu, DType::kBF16, 64}, normal_rows(random, 40, 64), random);
  Panels panels(normal_rows(random, 9, 64), Vec(9));
  std::vector<std::int32_t> labels(40);
  testing::GuardedBytes tiles(assign_tiles_bytes(9, 64));
  TileShapes mine, found;
  mine.bytes[0] = 1;   // the palette
  mine.bytes[16] = 8;  // bytes of a row of the first tile
  mine.bytes[48] = 3;  // its rows
  set_tile_shapes(&mine);
  clusterkv::ops_of<CpuOps>(Isa::kAmx).assign(
      {run.run, 9, panels.centroids.data(), panels.bias.data(), labels.data(), tiles.data()});
  get_tile_shapes(&found);
  EXPECT_EQ(std::memcmp(&mine, &found, sizeof mine), 0);
  const TileShapes none;
  set_tile_shapes(&none);
}
#endif

TEST(AssignErrors, RejectsHeadDim72) {
  AssignParams params{};
  params.keys.store.head_dim = 72;
  EXPECT_THROW(ops_of(Backend::kCpu).assign(params), ConfigError);
}

INSTANTIATE_TEST_SUITE_P(Ops, Assign, ::testing::ValuesIn(testing::op_cases()),
                         [](const auto& c) { return testing::name_of(c.param); });

}  // namespace
}  // namespace clusterkv::cluster
