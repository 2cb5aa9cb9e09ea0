// SPDX-License-Identifier: Apache-2.0
//
// The device's K-means: keys and centroids are rounded to the rows' dtype, so labels are judged by
// how far the chosen centroid is from the best one; what is exact on the CPU is exact here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "clusterkv/error.hpp"
#include "kernels/cluster/cuda/cluster_ops.hpp"
#include "kernels/cluster/rules.hpp"
#include "tests/cluster/fixture.hpp"
#include "tests/support/device.hpp"

namespace clusterkv::cluster {
namespace {

namespace on_device = testing::on_device;

struct Result {
  std::vector<std::int32_t> labels, order, offset;
  bool operator==(const Result&) const = default;
};

using Param = std::tuple<DType, int>;

class DeviceCluster : public testing::DeviceTest, public ::testing::WithParamInterface<Param> {
 protected:
  static OpCase op() { return {Backend::kCuda, std::get<0>(GetParam()), std::get<1>(GetParam())}; }
  static int dim() { return op().head_dim; }

  /// Several jobs of one launch; all of them the same run.
  static Result cluster(const SegmentParams& p) {
    const int n = p.keys.num_tokens;
    const int c = p.num_clusters;
    constexpr std::size_t kJobs = 2;
    testing::Guarded<std::int32_t> labels(kJobs * static_cast<std::size_t>(n));
    testing::Guarded<std::int32_t> order(labels.size());
    testing::Guarded<std::int32_t> offset(kJobs * static_cast<std::size_t>(c + 1));
    std::vector<on_device::ClusterJob> jobs;
    for (int i = 0; i < static_cast<int>(kJobs); ++i) {
      jobs.push_back({p, labels.data() + i * n, order.data() + i * n, offset.data() + i * (c + 1)});
    }
    on_device::cluster_segments(jobs.data(), kJobs, p, nullptr);
    EXPECT_TRUE(labels.guards_intact() && order.guards_intact() && offset.guards_intact());
    const Result first{{labels.data(), labels.data() + n},
                       {order.data(), order.data() + n},
                       {offset.data(), offset.data() + c + 1}};
    const Result second{{labels.data() + n, labels.data() + 2 * n},
                        {order.data() + n, order.data() + 2 * n},
                        {offset.data() + c + 1, offset.data() + 2 * (c + 1)}};
    EXPECT_EQ(first, second);
    expect_consistent(first, n, c);
    EXPECT_EQ(cluster_large(p), first) << "over the whole grid";
    return first;
  }
  /// The same run by the kernels for segments of any size.
  static Result cluster_large(const SegmentParams& p) {
    const auto n = static_cast<std::size_t>(p.keys.num_tokens);
    const auto c = static_cast<std::size_t>(p.num_clusters);
    testing::Guarded<std::int32_t> labels(n), order(n), offset(c + 1), cursor(c);
    const auto padded = static_cast<std::size_t>(on_device::large_clusters(p.num_clusters));
    testing::Guarded<std::uint16_t> centroids(padded * static_cast<std::size_t>(dim()));
    testing::Guarded<float> bias(padded);
    const on_device::LargeClusterJob job{{p, labels.data(), order.data(), offset.data()},
                                         centroids.data(),
                                         bias.data(),
                                         cursor.data()};
    on_device::cluster_large_segments(&job, 1, p, nullptr);
    EXPECT_TRUE(labels.guards_intact() && order.guards_intact() && offset.guards_intact());
    EXPECT_TRUE(centroids.guards_intact() && bias.guards_intact() && cursor.guards_intact());
    return {labels.copy(), order.copy(), offset.copy()};
  }
  static void expect_consistent(const Result& r, int n, int c) {
    ASSERT_TRUE(std::all_of(r.labels.begin(), r.labels.end(),
                            [&](int label) { return label >= 0 && label < c; }));
    EXPECT_EQ(r.order, reference::order_of(r.labels));
    EXPECT_EQ(r.offset.front(), 0);
    EXPECT_EQ(r.offset.back(), n);
    for (int k = 0; k < c; ++k) {
      EXPECT_EQ(r.offset[static_cast<std::size_t>(k) + 1] - r.offset[static_cast<std::size_t>(k)],
                std::count(r.labels.begin(), r.labels.end(), k));
    }
  }

  testing::Random random{31};
};

/// The score that decides, in fp64.
double score(const Vec& key, const Vec& centroid, Metric metric) {
  double dot = 0;
  double norm = 0;
  for (std::size_t d = 0; d < key.size(); ++d) {
    dot += key[d] * centroid[d];
    norm += centroid[d] * centroid[d];
  }
  if (metric == Metric::kCosine) return dot / std::max(std::sqrt(norm), 1e-12);
  return metric == Metric::kL2 ? dot - norm / 2 : dot;
}

/// Means of the clusters of `labels`, empty ones as before.
void update(const std::vector<Vec>& keys, const std::vector<std::int32_t>& labels,
            std::vector<Vec>& centroids) {
  for (std::size_t c = 0; c < centroids.size(); ++c) {
    Vec sum(keys[0].size(), 0.0);
    int count = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (labels[i] != static_cast<int>(c)) continue;
      ++count;
      for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += keys[i][d];
    }
    for (double& x : sum) x /= count;
    if (count > 0) centroids[c] = sum;
  }
}

TEST_P(DeviceCluster, EveryLabelIsAsGoodAsTheBest) {
  for (const Metric metric : {Metric::kCosine, Metric::kL2, Metric::kInnerProduct}) {
    for (const auto& [n, c] : {std::pair{160, 20}, std::pair{161, 13}, std::pair{530, 70}}) {
      const Keys keys(op(), testing::clustered_rows(random, n, dim(), 9, 1.0), random);
      std::vector<Vec> centroids;
      for (int k = 0; k < c; ++k) {
        centroids.push_back(keys.exact[static_cast<std::size_t>(k * n / c)]);
      }
      // Each iteration is judged from the labels the device found before it.
      for (int iterations = 1; iterations <= (n > 512 ? 2 : 3); ++iterations) {
        const Result got = cluster({keys.run, c, metric, iterations, false, 0});
        const double unit = op().dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
        for (std::size_t i = 0; i < keys.exact.size(); ++i) {
          double best = -INFINITY;
          double size = 0;
          for (const Vec& x : centroids) best = std::max(best, score(keys.exact[i], x, metric));
          const Vec& chosen = centroids[static_cast<std::size_t>(got.labels[i])];
          for (std::size_t d = 0; d < chosen.size(); ++d) size += chosen[d] * chosen[d];
          double key_size = 0;
          for (const double x : keys.exact[i]) key_size += x * x;
          const double scale =
              metric == Metric::kCosine ? std::sqrt(key_size) : std::sqrt(size * key_size) + size;
          ASSERT_GE(score(keys.exact[i], chosen, metric), best - unit * scale)
              << "token " << i << ", iteration " << iterations;
        }
        update(keys.exact, got.labels, centroids);
      }
    }
  }
}

// Integer keys and few clusters: all sums are exact, so ties are ties.
TEST_P(DeviceCluster, TiesGoToTheLowestId) {
  std::vector<Vec> rows(64, Vec(static_cast<std::size_t>(dim()), 1.0));
  const Keys keys(op(), rows, random);
  const Result got = cluster({keys.run, 9, Metric::kCosine, 4, false, 0});
  EXPECT_EQ(got.labels, std::vector<std::int32_t>(64, 0));
}

TEST_P(DeviceCluster, NanKeysGoToTheFirstClusterAndSpoilNoOther) {
  std::vector<Vec> rows = testing::clustered_rows(random, 96, dim(), 5, 1.0);
  const Keys clean(op(), rows, random);
  rows[50].assign(rows[50].size(), NAN);  // starts no cluster
  const Keys spoilt(op(), rows, random);
  const Result want = cluster({clean.run, 7, Metric::kCosine, 1, false, 0});
  const Result got = cluster({spoilt.run, 7, Metric::kCosine, 1, false, 0});
  EXPECT_EQ(got.labels[50], 0);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (i != 50) {
      EXPECT_EQ(got.labels[i], want.labels[i]) << i;
    }
  }
}

TEST_P(DeviceCluster, StartsFromTheSeededTokens) {
  const int n = 90;
  const int c = 10;
  const Keys keys(op(), testing::clustered_rows(random, n, dim(), 30, 1.0), random);
  std::vector<std::int32_t> starts(static_cast<std::size_t>(n));
  random_starts(77, n, c, starts.data());
  const Result got = cluster({keys.run, c, Metric::kCosine, 1, true, 77});
  for (int k = 0; k < c; ++k) {
    EXPECT_EQ(got.labels[static_cast<std::size_t>(starts[static_cast<std::size_t>(k)])], k)
        << "a token is nearest to itself";
  }
}

TEST_P(DeviceCluster, AsManyClustersAsTokensAndOne) {
  const Keys keys(op(), testing::clustered_rows(random, 40, dim(), 40, 1.0), random);
  const Result all = cluster({keys.run, 40, Metric::kL2, 3, false, 0});
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(all.labels[static_cast<std::size_t>(i)], i) << "a token is nearest to itself";
  }
  const Result one = cluster({keys.run, 1, Metric::kCosine, 3, false, 0});
  EXPECT_EQ(one.offset, (std::vector<std::int32_t>{0, 40}));
}

TEST_P(DeviceCluster, ZeroKeysAllGoToTheFirstCluster) {
  const Keys keys(op(), std::vector<Vec>(40, Vec(static_cast<std::size_t>(dim()))), random);
  for (const Metric metric : {Metric::kCosine, Metric::kL2, Metric::kInnerProduct}) {
    const Result got = cluster({keys.run, 6, metric, 2, false, 0});
    EXPECT_EQ(got.labels, std::vector<std::int32_t>(40, 0));
  }
  // A centroid of zeros has the score 0, not NaN: better than one that points away.
  std::vector<Vec> rows(40, Vec(static_cast<std::size_t>(dim()), -1.0));
  rows[0].assign(rows[0].size(), 0.0);
  rows[20].assign(rows[20].size(), 1.0);
  std::vector<std::int32_t> labels(40, 0);
  labels[20] = 1;
  EXPECT_EQ(cluster({Keys(op(), rows, random).run, 2, Metric::kCosine, 1, false, 0}).labels,
            labels);
}

// More than two tiles of centroids: the third takes the place of the first.
TEST_P(DeviceCluster, ManyCentroidTiles) {
  const Keys keys(op(), testing::clustered_rows(random, 300, dim(), 40, 1.0), random);
  cluster({keys.run, 200, Metric::kL2, 2, false, 0});
}

TEST_P(DeviceCluster, JobsOfALaunchMayDifferInSize) {
  const Keys keys(op(), testing::clustered_rows(random, 160, dim(), 9, 1.0), random);
  SegmentParams small{keys.run, 5, Metric::kCosine, 2, false, 0};
  small.keys.num_tokens = 37;
  SegmentParams large{keys.run, 70, Metric::kCosine, 2, false, 0};
  const Result want[2] = {cluster(small), cluster(large)};
  testing::Guarded<std::int32_t> labels(197), order(197), offset(77), cursor(75);
  testing::Guarded<std::uint16_t> centroids(192 * static_cast<std::size_t>(dim()));
  testing::Guarded<float> bias(192);
  const on_device::ClusterJob jobs[2] = {
      {small, labels.data(), order.data(), offset.data()},
      {large, labels.data() + 37, order.data() + 37, offset.data() + 6}};
  const on_device::LargeClusterJob large_jobs[2] = {
      {jobs[0], centroids.data(), bias.data(), cursor.data()},
      {jobs[1], centroids.data() + 64 * dim(), bias.data() + 64, cursor.data() + 5}};
  for (const bool is_large : {false, true}) {
    if (is_large) {
      on_device::cluster_large_segments(large_jobs, 2, large, nullptr);
    } else {
      on_device::cluster_segments(jobs, 2, large, nullptr);
    }
    EXPECT_EQ((Result{{labels.data(), labels.data() + 37},
                      {order.data(), order.data() + 37},
                      {offset.data(), offset.data() + 6}}),
              want[0]);
    EXPECT_EQ((Result{{labels.data() + 37, labels.data() + 197},
                      {order.data() + 37, order.data() + 197},
                      {offset.data() + 6, offset.data() + 77}}),
              want[1]);
  }
}

TEST_P(DeviceCluster, RefusesWhatOneBlockOfThreadsDoesNotHold) {
  const Keys keys(op(), testing::clustered_rows(random, 20, dim(), 4, 1.0), random);
  const SegmentParams run{keys.run, 3, Metric::kCosine, 1, false, 0};
  testing::Guarded<std::int32_t> labels(20), order(20), offset(4);
  const on_device::ClusterJob job{run, labels.data(), order.data(), offset.data()};
  SegmentParams like = run;
  like.num_clusters = on_device::kMaxSegmentClusters + 1;
  EXPECT_THROW(on_device::cluster_segments(&job, 1, like, nullptr), ConfigError);
  like = run;
  like.keys.num_tokens = on_device::kMaxSegmentTokens + 1;
  EXPECT_THROW(on_device::cluster_segments(&job, 1, like, nullptr), ConfigError);
}

TEST_P(DeviceCluster, SameBitsInAnySchedule) {
  const Keys keys(op(), testing::clustered_rows(random, 300, dim(), 12, 1.0), random);
  const Result first = cluster({keys.run, 70, Metric::kCosine, 2, false, 0});
  for (const std::uint64_t seed : {8, 9}) {
    set_schedule(seed);
    EXPECT_EQ(cluster({keys.run, 70, Metric::kCosine, 2, false, 0}), first);
  }
}

std::string name_of_param(const ::testing::TestParamInfo<Param>& info) {
  return testing::name_of(std::get<0>(info.param)) + "_d" + std::to_string(std::get<1>(info.param));
}
INSTANTIATE_TEST_SUITE_P(Ops, DeviceCluster,
                         ::testing::Combine(::testing::Values(DType::kF16, DType::kBF16),
                                            ::testing::Values(64, 80, 96, 128, 256)),
                         name_of_param);

}  // namespace
}  // namespace clusterkv::cluster
