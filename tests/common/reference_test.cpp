// SPDX-License-Identifier: Apache-2.0
//
// The oracles on cases worked out by hand, and the test support that all suites lean on.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/reference/attend.hpp"
#include "tests/reference/cluster.hpp"
#include "tests/reference/index.hpp"
#include "tests/reference/recall.hpp"
#include "tests/reference/select.hpp"
#include "tests/support/compare.hpp"
#include "tests/support/stores.hpp"

namespace clusterkv {
namespace {

using reference::Vec;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(ReferenceNumeric, DecodesWhatTheStandardsPrint) {
  EXPECT_EQ(decode(reference::kF16Format, 0x3C00), 1.0);
  EXPECT_EQ(decode(reference::kF16Format, 0x7BFF), 65504.0);
  EXPECT_EQ(decode(reference::kF16Format, 0x0001), 0x1p-24);
  EXPECT_EQ(decode(reference::kF16Format, 0x0400), 0x1p-14);
  EXPECT_EQ(decode(reference::kF16Format, 0xC000), -2.0);
  EXPECT_EQ(decode(reference::kF16Format, 0xFC00), -kInfinity);
  EXPECT_EQ(decode(reference::kBF16Format, 0x3F80), 1.0);
  EXPECT_EQ(decode(reference::kBF16Format, 0x4049), 3.140625);
  EXPECT_TRUE(std::isnan(decode(reference::kBF16Format, 0x7FC0)));
}

TEST(ReferenceNumeric, EncodesToNearestTiesToEven) {
  EXPECT_EQ(encode(reference::kF16Format, 1.0 + 0x1p-11), 0x3C00);
  EXPECT_EQ(encode(reference::kF16Format, 1.0 + 3 * 0x1p-11), 0x3C02);
  EXPECT_EQ(encode(reference::kF16Format, 65519.0), 0x7BFF);
  EXPECT_EQ(encode(reference::kF16Format, 65520.0), 0x7C00);
  EXPECT_EQ(encode(reference::kF16Format, 0x1p-25), 0x0000);
  EXPECT_EQ(encode(reference::kF16Format, 0x1.8p-25), 0x0001);
  EXPECT_EQ(encode(reference::kF16Format, 0x1p-14 - 0x1p-26), 0x0400);
  EXPECT_EQ(encode(reference::kBF16Format, -3.140625), 0xC049);
  EXPECT_EQ(encode(reference::kBF16Format, -0.0), 0x8000);
  EXPECT_EQ(reference::rounded(DType::kBF16, 257.0), 256.0);
}

TEST(ReferenceCluster, AssignsTiesToTheLowestId) {
  const std::vector<Vec> keys = {{2, 0}, {0, 0}, {-1, 0}};
  const std::vector<Vec> centroids = {{0, 1}, {1, 0}, {1, 0}};
  const auto got = reference::assign(keys, {centroids, {0, 0, 0}});
  EXPECT_EQ(got.labels, (std::vector<int>{1, 0, 0}));
  EXPECT_EQ(reference::assign({{2, 0}}, {centroids, {0, 3, 1}}).labels, (std::vector<int>{2}));
}

TEST(ReferenceCluster, SmallestGapIsRelativeToTheLargestScore) {
  const auto got = reference::assign({{4, 0}}, {{{1, 0}, {0.75, 0}, {-2, 0}}, {0, 0, 0}});
  EXPECT_DOUBLE_EQ(got.smallest_gap, 1.0 / 8);
}

TEST(ReferenceCluster, PacksEachMetric) {
  EXPECT_EQ(reference::pack({{3, 4}}, Metric::kCosine).centroids[0], (Vec{0.6, 0.8}));
  EXPECT_EQ(reference::pack({{0, 0}}, Metric::kCosine).centroids[0], (Vec{0, 0}));
  EXPECT_EQ(reference::pack({{3, 4}}, Metric::kL2).bias[0], 12.5);
  EXPECT_EQ(reference::pack({{3, 4}}, Metric::kInnerProduct).centroids[0], (Vec{3, 4}));
}

// Four points on a line in two groups: L2 from tokens 0 and 2 finds them, and the second round
// moves nothing.
TEST(ReferenceCluster, KmeansOfFourPoints) {
  const std::vector<Vec> keys = {{0, 1}, {10, 1}, {1, 1}, {11, 1}};
  EXPECT_EQ(reference::kmeans(keys, {0, 1}, Metric::kL2, 3).labels, (std::vector<int>{0, 1, 0, 1}));
  const auto update = reference::update(keys, {0, 2, 0, 2}, {{9, 9}, {8, 8}, {7, 7}});
  EXPECT_EQ(update[0], (Vec{0.5, 1}));
  EXPECT_EQ(update[1], (Vec{8, 8}));
  EXPECT_EQ(update[2], (Vec{10.5, 1}));
  EXPECT_EQ(reference::order_of({1, 0, 1, 0}), (std::vector<int>{1, 3, 0, 2}));
}

// Cluster 0 = {0, 2}, cluster 2 = {4}: deviations 1, 1, 0, D = 2/3, variances 1 and 0.
TEST(ReferenceIndex, SpreadsByHand) {
  const auto got =
      reference::index_segment({{0, 5}, {2, 5}, {4, 5}}, {{1, 0}, {3, 0}, {5, 6}}, {0, 0, 2});
  ASSERT_EQ(got.clusters.size(), 2U);
  EXPECT_EQ(got.clusters[0].mean_key, (Vec{1, 5}));
  EXPECT_EQ(got.clusters[1].mean_value, (Vec{5, 6}));
  EXPECT_DOUBLE_EQ(got.profile[0], 2.0 / 3);
  EXPECT_EQ(got.profile[1], 0.0);
  EXPECT_DOUBLE_EQ(got.clusters[0].spread, 1.5);  // the second dimension does not count
  EXPECT_EQ(got.clusters[1].spread, 0.0);
  EXPECT_EQ(got.value_sum, (Vec{9, 6}));
}

TEST(ReferenceIndex, Int8RowByHand) {
  const auto row = reference::int8_row({-254, 1, 3, kNan, 100});
  EXPECT_EQ(row.scale, 2.0);
  EXPECT_EQ(row.codes, (std::vector<int>{-127, 0, 2, 0, 50}));  // 0.5 and 1.5 go to even
  EXPECT_EQ(reference::int8_row({0, 0}).scale, 1e-12);
}

TEST(ReferenceSelect, ScoreByHand) {
  // w = 2 * 1/2 * 0.25 * (4 * 1 + 1 * 8) = 3, so t = z + 2.
  const auto s = reference::score({2, 1}, {3, -1}, 2.0, {1, 8}, 0.5);
  EXPECT_DOUBLE_EQ(s.z, 2.5 * reference::kLog2E);
  EXPECT_DOUBLE_EQ(s.t, s.z + 2);
}

// The mean of e^f over two logits z - h and z + h is e^f(z) (1 + h^2/2 (f'^2 + f'')), to second order.
TEST(ReferenceSelect, SpreadsUnderASoftcapAreMeansOfTheCappedLogits) {
  constexpr double kCap = 3;
  constexpr double kStep = 1e-2;
  for (const double z : {-4.0, -0.5, 0.0, 0.7}) {
    const auto mass = [&](double x) { return std::exp(reference::soft_capped(x, kCap)); };
    const double mean = (mass(z - kStep) + mass(z + kStep)) / 2;
    const double got =
        reference::mass_score(z * reference::kLog2E, kStep * kStep / 2, kCap) / reference::kLog2E;
    EXPECT_NEAR(got, std::log(mean), 1e-8) << z;
  }
  // Where the cap bends down more than the spread lifts, the mean key alone counts.
  EXPECT_DOUBLE_EQ(reference::mass_score(6 * reference::kLog2E, 1, kCap),
                   reference::kLog2E * reference::soft_capped(6, kCap));
}

TEST(ReferenceSelect, QuantisesTheQueryToSixteenBits) {
  const Vec got = reference::quantised_query({32512, 1.5, -0.25});
  EXPECT_EQ(got, (Vec{32512, 2, 0}));
  EXPECT_EQ(reference::quantised_query({0, 0}), (Vec{0, 0}));
}

TEST(ReferenceSelect, ChoosesAPrefixAndTrims) {
  EXPECT_EQ(reference::choose({1, 5, 5, kNan}, {4, 3, 3, 9}, 5), (std::vector<int>{0, 3, 2, 0}));
  EXPECT_EQ(reference::choose({1, 5, 5, kNan}, {4, 3, 3, 9}, 99), (std::vector<int>{4, 3, 3, 9}));
}

TEST(ReferenceSelect, VotesOfTwoHeadsByHand) {
  const Vec got = reference::votes({{0, 1, 50}, {2, 2, 60}}, {1, 7, 0});
  EXPECT_DOUBLE_EQ(got[0], 1.0 / 3 + 0.5);
  EXPECT_DOUBLE_EQ(got[1], 2.0 / 3 + 0.5);
  EXPECT_EQ(got[2], 0.0);
}

TEST(ReferenceRecall, SecondChanceByHand) {
  reference::SecondChance cache(2);
  cache.begin_step();
  EXPECT_FALSE(cache.touch(1));
  EXPECT_FALSE(cache.touch(2));
  cache.begin_step();
  EXPECT_TRUE(cache.touch(1));   // a reprieve for 1
  EXPECT_FALSE(cache.touch(3));  // 1 is busy and reprieved, 2 goes
  EXPECT_FALSE(cache.holds(2));
  EXPECT_FALSE(cache.touch(4));  // both are busy: read in place
  EXPECT_FALSE(cache.holds(4));
  cache.begin_step();
  EXPECT_FALSE(cache.touch(5));  // 1 loses its reprieve, 3 goes
  EXPECT_TRUE(cache.holds(1));
  EXPECT_FALSE(cache.holds(3));
}

TEST(ReferenceAttend, SoftmaxByHand) {
  // Weights 1 * e^0 and 3 * e^0: (1 * 4 + 3 * 8) / 4 = 7.
  const auto state = reference::softmax({{0, 1, {4}}, {0, 3, {8}}}, 1);
  EXPECT_DOUBLE_EQ(state.out[0], 7);
  EXPECT_DOUBLE_EQ(state.lse, std::log(4.0));
  const auto none = reference::softmax({}, 2);
  EXPECT_EQ(none.out, (Vec{0, 0}));
  EXPECT_EQ(none.lse, -kInfinity);
}

TEST(ReferenceAttend, MergeByHand) {
  const auto merged =
      reference::merge({{{1}, std::log(1.0)}, {{5}, std::log(3.0)}, {{9}, -kInfinity}});
  EXPECT_DOUBLE_EQ(merged.out[0], 4);
  EXPECT_DOUBLE_EQ(merged.lse, std::log(4.0));
}

TEST(Compare, NanIsInfinitelyFar) {
  const float got[] = {1.0F, NAN};
  const Vec want = {1.0, 2.0};
  EXPECT_EQ(testing::max_error(got, want), kInfinity);
  EXPECT_EQ(testing::relative_error(NAN, 1.0), kInfinity);
  EXPECT_EQ(testing::relative_error(-kInfinity, -kInfinity), 0.0);
  EXPECT_EQ(testing::relative_error(0.0, -kInfinity), kInfinity);
  const float close[] = {1.0F, 2.5F};
  EXPECT_DOUBLE_EQ(testing::max_error(close, want), 0.25);
}

TEST(Stores, NoticeAWriteOutsideAndAroundTheirRows) {
  testing::Random random(1);
  testing::TestRows rows(DType::kF16, 64, 2, 300, random);
  const auto before = rows.snapshot();
  rows.set(1, 299, Vec(64, 1.0), Vec(64, 2.0));
  EXPECT_TRUE(rows.same_but(before, {{1, 299}}));
  EXPECT_FALSE(rows.same_but(before, {{0, 299}}));
  rows.bytes(1, 299)[2 * 64 * 2] = std::byte{0};  // the padding of the row
  EXPECT_FALSE(rows.same_but(before, {{1, 299}}));
  testing::GuardedBytes guarded(10);
  EXPECT_TRUE(guarded.guards_intact());
  guarded.data()[10] = std::byte{1};
  EXPECT_FALSE(guarded.guards_intact());
}

TEST(Stores, AFreshRowIsNan) {
  testing::Random random(1);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    testing::TestRows rows(dtype, 64, 1, 10, random);
    EXPECT_TRUE(std::isnan(rows.key(0, 3)[5]));
    rows.set(0, 3, Vec(64, 1.5), Vec(64, -2.0));
    EXPECT_EQ(rows.key(0, 3)[63], 1.5);
    EXPECT_EQ(rows.value(0, 3)[0], -2.0);
  }
}

TEST(Stores, SceneClustersCoverEachStoredRowOnce) {
  testing::SceneShape shape;
  shape.op = {Backend::kCpu, DType::kF32, 64};
  shape.index_dtype = IndexDType::kInt8;
  shape.segments = {{130, 140}, {3, 2}, {64, 500}};
  const testing::Scene scene(shape, 4);
  for (const auto& clusters : scene.clusters) {
    std::int64_t next = 0;
    for (const auto& cluster : clusters) {
      EXPECT_EQ(cluster.first_row, next);
      EXPECT_GT(cluster.size, 0);
      next += cluster.size;
    }
    EXPECT_EQ(next, scene.num_stored);
  }
  const std::set<std::uint32_t> distinct(scene.blocks.begin(), scene.blocks.end());
  EXPECT_EQ(distinct.size(), scene.blocks.size());
  EXPECT_EQ(scene.blocks.size(), 5U);
}

}  // namespace
}  // namespace clusterkv
