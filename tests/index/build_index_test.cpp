// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <span>
#include <tuple>

#include "clusterkv/error.hpp"
#include "tests/index/fixture.hpp"
#include "tests/support/compare.hpp"

namespace clusterkv::index {
namespace {

constexpr int kHeads = 2;
constexpr int kHead = 1;
constexpr int kBlocks = 9;
constexpr int kRecords = 4;
constexpr std::int64_t kFirstRow = 777;
using Param = std::tuple<OpCase, IndexDType>;

class BuildIndex : public ::testing::TestWithParam<Param> {
 protected:
  BuildIndex() : index(index_dtype(), op().dims(), kHeads, kBlocks, kRecords) {}

  static OpCase op() { return std::get<0>(GetParam()); }
  static int dim() { return op().head_dim; }
  static int value_dim() { return op().dims().value; }
  static IndexDType index_dtype() { return std::get<1>(GetParam()); }

  /// Puts the rows into a live store, builds the index, returns what the reference makes of them.
  reference::IndexedSegment build(const std::vector<Vec>& keys, const std::vector<Vec>& values,
                                  const std::vector<int>& labels, int num_clusters) {
    const int n = static_cast<int>(keys.size());
    testing::TestRows live(op().dtype, op().dims(), kHeads, kFirstLive + n, random);
    for (int i = 0; i < n; ++i) {
      live.set(kHead, kFirstLive + i, keys[static_cast<std::size_t>(i)],
               values[static_cast<std::size_t>(i)]);
    }
    target.segment.record = record;
    target.segment.num_rows = n;
    target.segment.first_row = kFirstRow;
    target.segment.num_blocks = (num_clusters + kBlockClusters - 1) / kBlockClusters;
    target.blocks = blocks;
    const auto order = reference::order_of(labels);
    const auto offset = offsets_of(labels, num_clusters);
    testing::Guarded<float> variance(static_cast<std::size_t>(num_clusters * dim()));
    ops_of(op().backend)
        .build_index(
            {live.view(), index.view(), num_clusters, order.data(), offset.data(), variance.data()},
            {live.pages(), kFirstLive, kFirstToken, n, kHead}, target);
    EXPECT_TRUE(variance.guards_intact());
    EXPECT_TRUE(index.guards_intact());
    return reference::index_segment(live.keys(kHead, kFirstLive, n),
                                    live.values(kHead, kFirstLive, n), labels);
  }

  std::vector<Vec> rows(int n, double outlier) {
    return testing::clustered_rows(random, n, dim(), 9, outlier);
  }
  std::vector<Vec> values(int n) { return testing::clustered_rows(random, n, value_dim(), 9, 0.0); }
  std::uint32_t block(int cluster) const { return blocks[cluster / kBlockClusters]; }
  float spread(int cluster) {
    return index.view().spread[index.at(kHead, block(cluster), cluster % kBlockClusters)];
  }
  std::pair<std::uint32_t, std::uint32_t> run(int cluster) {
    const std::uint32_t* first =
        index.view().block_offset(kHead, block(cluster)) + cluster % kBlockClusters;
    return {first[0], first[1]};
  }
  void expect_rows(const Vec& got, const Vec& want);
  void expect_index(const reference::IndexedSegment& want);

  Random random{41};
  testing::TestIndex index;
  SegmentTarget target{};
  std::uint32_t record = 2;
  std::uint32_t blocks[4] = {7, 2, 4, 0};
};

/// A stored mean against the exact one.
void BuildIndex::expect_rows(const Vec& got, const Vec& want) {
  double largest = 0;
  for (const double x : want) largest = std::max(largest, std::abs(x));
  for (std::size_t d = 0; d < want.size(); ++d) {
    // Half a step of the stored type, and an fp32 sum of at most a few hundred rows.
    const double half_step = index_dtype() == IndexDType::kInt8   ? 0.5 * largest / 127
                             : index_dtype() == IndexDType::kBF16 ? 0x1p-8 * std::abs(want[d])
                                                                  : 0.0;
    ASSERT_NEAR(got[d], want[d], half_step + 2e-6 * largest) << d;
  }
}

void BuildIndex::expect_index(const reference::IndexedSegment& want) {
  ASSERT_EQ(*index.view().record_used(kHead, record), static_cast<int>(want.clusters.size()));
  std::uint32_t row = kFirstRow;
  for (int c = 0; c < target.segment.num_blocks * kBlockClusters; ++c) {
    if (c >= static_cast<int>(want.clusters.size())) {
      EXPECT_EQ(run(c).first, run(c).second) << "unused cluster " << c;
      continue;
    }
    const auto& cluster = want.clusters[static_cast<std::size_t>(c)];
    EXPECT_EQ(run(c).first, row);
    row += static_cast<std::uint32_t>(cluster.tokens.size());
    EXPECT_EQ(run(c).second, row);
    expect_rows(index.centroid(kHead, block(c), c % kBlockClusters), cluster.mean_key);
    expect_rows(index.value_mean(kHead, block(c), c % kBlockClusters), cluster.mean_value);
    // Two-pass sums in fp32; with outlier channels E[x^2] - mean^2 misses this by far.
    EXPECT_NEAR(spread(c), cluster.spread, 2e-5 * std::max(1.0, cluster.spread)) << c;
  }
  const std::span profile(index.view().record_profile(kHead, record), want.profile.size());
  const std::span sum(index.view().record_value_sum(kHead, record), want.value_sum.size());
  EXPECT_LT(testing::max_error(profile, want.profile), 2e-5);
  EXPECT_LT(testing::max_error(sum, want.value_sum), 2e-5);
}

TEST_P(BuildIndex, MatchesReference) {
  for (const auto& [n, c] : {std::pair{9, 2}, {100, 13}, {300, 70}, {260, 130}}) {
    const auto labels = random_labels(random, n, c);
    expect_index(build(rows(n, 0.0), values(n), labels, c));
  }
}

TEST_P(BuildIndex, OutlierChannelsDoNotSpoilTheSpread) {
  const int n = 200;
  const auto keys = rows(n, 1000.0);  // its square leaves no bit of a float for the deviations
  expect_index(build(keys, values(n), random_labels(random, n, 11), 11));
}

TEST_P(BuildIndex, EmptyClustersAreDropped) {
  // 5 of 200 labels are used: one block of three is filled, all else has size 0.
  std::vector<int> labels = random_labels(random, 60, 5);
  for (int& label : labels) label = label * 47 + 3;
  const auto want = build(rows(60, 0.0), values(60), labels, 192);
  EXPECT_EQ(want.clusters.size(), 5U);
  expect_index(want);
}

TEST_P(BuildIndex, OneTokenHasNoSpread) {
  const auto want = build(rows(1, 0.0), values(1), {0}, 1);
  expect_index(want);
  EXPECT_EQ(spread(0), 0.0F);
  for (int d = 0; d < dim(); ++d) EXPECT_EQ(index.view().record_profile(kHead, record)[d], 0.0F);
}

TEST_P(BuildIndex, ConstantAndZeroKeysHaveNoSpread) {
  for (const double value : {0.0, 1.5}) {
    const std::vector<Vec> same(50, Vec(static_cast<std::size_t>(dim()), value));
    expect_index(build(same, values(50), std::vector<int>(50, 0), 7));
    EXPECT_EQ(spread(0), 0.0F);
  }
}

TEST_P(BuildIndex, DimensionsWithoutDeviationAreLeftOut) {
  auto keys = rows(80, 0.0);
  for (Vec& key : keys) key[1] = key[2] = key[40] = 0.75;
  expect_index(build(keys, values(80), random_labels(random, 80, 6), 6));
}

TEST_P(BuildIndex, NanStaysInItsClusterAndIsZeroAsInt8) {
  auto keys = rows(40, 0.0);
  auto values = this->values(40);
  std::vector<int> labels;
  for (int i = 0; i < 40; ++i) labels.push_back(i / 10);
  keys[12][5] = values[33][7] = NAN;
  const auto want = build(keys, values, labels, 4);
  for (int c : {0, 2}) {
    expect_rows(index.centroid(kHead, block(c), c),
                want.clusters[static_cast<std::size_t>(c)].mean_key);
  }
  if (index_dtype() != IndexDType::kInt8) return;
  EXPECT_EQ(index.centroid(kHead, block(1), 1)[5], 0.0);
  EXPECT_EQ(index.value_mean(kHead, block(3), 3)[7], 0.0);
  for (int c = 0; c < 4; ++c) {
    for (const double x : index.centroid(kHead, block(c), c)) EXPECT_TRUE(std::isfinite(x));
  }
}

class BuildInt8Index : public BuildIndex {};

TEST_P(BuildInt8Index, CodesAreThoseOfTheReference) {
  const auto want = build(rows(90, 5.0), values(90), random_labels(random, 90, 9), 9);
  for (int c = 0; c < static_cast<int>(want.clusters.size()); ++c) {
    const auto row = reference::int8_row(want.clusters[static_cast<std::size_t>(c)].mean_key);
    const std::size_t at = index.at(kHead, block(c), c);
    EXPECT_NEAR(index.view().centroid_scale[at], row.scale, 2e-6 * row.scale);
    const auto* codes = reinterpret_cast<const std::int8_t*>(index.view().centroids) +
                        at * static_cast<std::size_t>(dim());
    for (std::size_t d = 0; d < row.codes.size(); ++d) {
      const double ratio = want.clusters[static_cast<std::size_t>(c)].mean_key[d] / row.scale;
      if (std::abs(std::abs(ratio - std::floor(ratio)) - 0.5) < 1e-3) continue;  // a tie in fp32
      EXPECT_EQ(codes[d], row.codes[d]);
    }
  }
}

class BuildFloatIndex : public BuildIndex {};

TEST_P(BuildFloatIndex, ScalesAreOne) {
  build(rows(20, 0.0), values(20), random_labels(random, 20, 3), 3);
  EXPECT_EQ(index.view().centroid_scale[index.at(kHead, block(0), 0)], 1.0F);
  EXPECT_EQ(index.view().value_scale[index.at(kHead, block(0), 0)], 1.0F);
}

TEST_P(BuildIndex, LeavesOtherBlocksHeadsAndRecordsUntouched) {
  build(rows(70, 0.0), values(70), random_labels(random, 70, 66), 66);
  const auto before = index.snapshot();
  record = 0;
  blocks[0] = 5;  // a second segment in blocks of its own
  blocks[1] = 8;
  build(rows(90, 0.0), values(90), random_labels(random, 90, 70), 70);
  for (int head = 0; head < kHeads; ++head) {
    for (std::uint32_t b = 0; b < kBlocks; ++b) {
      if (head == kHead && (b == 5 || b == 8)) continue;
      EXPECT_TRUE(index.same_block(before, head, b)) << "head " << head << " block " << b;
    }
  }
  const auto after = index.snapshot();
  for (std::size_t array = 6; array < after.size(); ++array) {  // profile, value sum, used
    const std::size_t one = after[array].size() / (kHeads * kRecords);
    for (std::size_t r = 0; r < kHeads * kRecords; ++r) {
      if (r == kHead * kRecords) continue;
      EXPECT_EQ(std::memcmp(before[array].data() + r * one, after[array].data() + r * one, one), 0);
    }
  }
}

TEST_P(BuildIndex, SameBitsOnEveryRun) {
  const auto keys = rows(120, 12.0);
  const auto values = this->values(120);
  const auto labels = random_labels(random, 120, 17);
  build(keys, values, labels, 17);
  const auto first = index.snapshot();
  build(keys, values, labels, 17);  // from other pages
  const auto second = index.snapshot();
  for (std::size_t array = 0; array < first.size(); ++array) {
    EXPECT_EQ(std::memcmp(first[array].data(), second[array].data(), first[array].size()), 0);
  }
}

TEST_P(BuildIndex, ValueSumsAddUpOverSegments) {
  float* first = index.view().record_value_sum(kHead, 3);
  float* second = index.view().record_value_sum(kHead, 1);
  for (int d = 0; d < value_dim(); ++d) {
    first[d] = static_cast<float>(d);
    second[d] = 0.5F;
  }
  const std::vector<float> other(index.view().record_value_sum(0, 1),
                                 index.view().record_value_sum(0, 1) + value_dim());
  ops_of(op().backend).add_value_sum(index.view(), kHead, 1, 3);
  for (int d = 0; d < value_dim(); ++d) {
    EXPECT_EQ(second[d], static_cast<float>(d) + 0.5F);
    EXPECT_EQ(first[d], static_cast<float>(d));
  }
  EXPECT_EQ(std::memcmp(other.data(), index.view().record_value_sum(0, 1), other.size() * 4), 0);
}

TEST(BuildIndexErrors, RejectsHeadDim72) {
  BuildParams params{};
  params.live.head_dim = 72;
  params.index.head_dim = 72;
  EXPECT_THROW(ops_of(Backend::kCpu).build_index(params, {}, {}), ConfigError);
}

std::string name_of_param(const ::testing::TestParamInfo<Param>& info) {
  return testing::name_of(std::get<0>(info.param)) + "_" +
         testing::name_of(std::get<1>(info.param));
}

auto cases(std::initializer_list<IndexDType> dtypes) {
  return ::testing::Combine(::testing::ValuesIn(testing::value_op_cases()),
                            ::testing::ValuesIn(dtypes));
}

INSTANTIATE_TEST_SUITE_P(Ops, BuildIndex,
                         cases({IndexDType::kInt8, IndexDType::kBF16, IndexDType::kF32}),
                         name_of_param);
INSTANTIATE_TEST_SUITE_P(Ops, BuildInt8Index, cases({IndexDType::kInt8}), name_of_param);
INSTANTIATE_TEST_SUITE_P(Ops, BuildFloatIndex, cases({IndexDType::kBF16, IndexDType::kF32}),
                         name_of_param);

}  // namespace
}  // namespace clusterkv::index
