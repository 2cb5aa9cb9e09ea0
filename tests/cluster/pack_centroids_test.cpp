// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "tests/cluster/fixture.hpp"

namespace clusterkv::cluster {
namespace {

using Param = std::tuple<Backend, Metric, int>;

class PackCentroids : public ::testing::TestWithParam<Param> {
 protected:
  struct Result {
    testing::Guarded<float> panels, bias;
  };
  Result pack(const std::vector<Vec>& centroids) {
    const std::size_t count = (centroids.size() + kPanel - 1) / kPanel * kPanel;
    Result result{testing::Guarded<float>(count * static_cast<std::size_t>(dim())),
                  testing::Guarded<float>(count)};
    const std::vector<float> rows = flat(centroids);
    ops_of(std::get<0>(GetParam()))
        .pack({rows.data(), static_cast<int>(centroids.size()), dim(), metric(),
               result.panels.data(), result.bias.data()});
    EXPECT_TRUE(result.panels.guards_intact());
    EXPECT_TRUE(result.bias.guards_intact());
    return result;
  }
  Vec column(Result& r, std::size_t c) {
    Vec x;
    const auto rows = static_cast<std::size_t>(dim());
    for (std::size_t d = 0; d < rows; ++d) {
      x.push_back(r.panels[(c / kPanel * rows + d) * kPanel + c % kPanel]);
    }
    return x;
  }
  static Metric metric() { return std::get<1>(GetParam()); }
  static int dim() { return std::get<2>(GetParam()); }

  Random random{5};
};

TEST_P(PackCentroids, MatchesReference) {
  for (const int c : {1, 8, 13}) {
    const auto rows = normal_rows(random, c, dim());
    const reference::Packed want = reference::pack(rows, metric());
    Result got = pack(rows);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Vec x = column(got, i);
      for (std::size_t d = 0; d < x.size(); ++d) {
        // A norm of up to 256 squares and one division.
        EXPECT_NEAR(x[d], want.centroids[i][d], 2e-6 * std::abs(want.centroids[i][d]));
      }
      EXPECT_NEAR(got.bias[i], want.bias[i], 2e-6 * want.bias[i]);
    }
  }
}

TEST_P(PackCentroids, PaddingIsZeroWithInfiniteBias) {
  Result got = pack(normal_rows(random, 11, dim()));
  for (std::size_t c = 11; c < 16; ++c) {
    EXPECT_EQ(column(got, c), Vec(static_cast<std::size_t>(dim())));
    EXPECT_EQ(got.bias[c], std::numeric_limits<float>::infinity());
  }
}

TEST_P(PackCentroids, ZeroCentroidsStayZero) {
  Result got = pack({Vec(static_cast<std::size_t>(dim()))});
  EXPECT_EQ(column(got, 0), Vec(static_cast<std::size_t>(dim())));
  EXPECT_EQ(got.bias[0], 0.0F);
}

TEST_P(PackCentroids, LargeChannelsKeepTheNormFinite) {
  // 60000 is near the largest f16: its square must be formed in fp32.
  const Vec large(static_cast<std::size_t>(dim()), 60000.0);
  Result got = pack({large});
  EXPECT_TRUE(std::isfinite(column(got, 0)[0]));
  if (metric() == Metric::kCosine) {
    EXPECT_NEAR(column(got, 0)[0], 1 / std::sqrt(dim()), 1e-6);
  }
}

std::string name_of_param(const ::testing::TestParamInfo<Param>& info) {
  const auto& [backend, metric, dim] = info.param;
  const std::string name = metric == Metric::kCosine ? "cosine"
                           : metric == Metric::kL2   ? "l2"
                                                     : "inner";
  return testing::name_of(backend) + "_" + name + "_d" + std::to_string(dim);
}

INSTANTIATE_TEST_SUITE_P(Ops, PackCentroids,
                         ::testing::Combine(::testing::Values(Backend::kCpu),
                                            ::testing::Values(Metric::kCosine, Metric::kL2,
                                                              Metric::kInnerProduct),
                                            ::testing::Values(64, 80, 96, 128, 256)),
                         name_of_param);

}  // namespace
}  // namespace clusterkv::cluster
