// SPDX-License-Identifier: Apache-2.0
#include "tests/reference/index.hpp"

#include <algorithm>
#include <cmath>

namespace clusterkv::reference {
namespace {

Vec mean_of(const std::vector<Vec>& rows, const std::vector<int>& tokens) {
  Vec mean(rows.front().size());
  for (const int token : tokens) {
    for (std::size_t d = 0; d < mean.size(); ++d)
      mean[d] += rows[static_cast<std::size_t>(token)][d];
  }
  for (double& x : mean) x /= static_cast<double>(tokens.size());
  return mean;
}

Vec square_deviations(const std::vector<Vec>& keys, const IndexedCluster& cluster) {
  Vec sum(cluster.mean_key.size());
  for (const int token : cluster.tokens) {
    for (std::size_t d = 0; d < sum.size(); ++d) {
      const double deviation = keys[static_cast<std::size_t>(token)][d] - cluster.mean_key[d];
      sum[d] += deviation * deviation;
    }
  }
  return sum;
}

}  // namespace

IndexedSegment index_segment(const std::vector<Vec>& keys, const std::vector<Vec>& values,
                             const std::vector<int>& labels) {
  const std::size_t dim = keys.front().size();
  const auto n = static_cast<double>(keys.size());
  IndexedSegment segment;
  segment.profile.assign(dim, 0.0);
  segment.value_sum.assign(values.front().size(), 0.0);
  const int last = *std::max_element(labels.begin(), labels.end());
  for (int c = 0; c <= last; ++c) {
    IndexedCluster cluster;
    for (std::size_t i = 0; i < labels.size(); ++i) {
      if (labels[i] == c) cluster.tokens.push_back(static_cast<int>(i));
    }
    if (cluster.tokens.empty()) continue;
    cluster.mean_key = mean_of(keys, cluster.tokens);
    cluster.mean_value = mean_of(values, cluster.tokens);
    segment.clusters.push_back(cluster);
  }
  std::vector<Vec> deviations;
  for (const IndexedCluster& cluster : segment.clusters) {
    deviations.push_back(square_deviations(keys, cluster));
    for (std::size_t d = 0; d < dim; ++d) segment.profile[d] += deviations.back()[d] / n;
  }
  for (const Vec& value : values) {
    for (std::size_t d = 0; d < value.size(); ++d) segment.value_sum[d] += value[d];
  }
  for (std::size_t c = 0; c < deviations.size(); ++c) {
    IndexedCluster& cluster = segment.clusters[c];
    int live = 0;
    double sum = 0;
    for (std::size_t d = 0; d < dim; ++d) {
      if (segment.profile[d] <= 0) continue;
      ++live;
      sum += deviations[c][d] / static_cast<double>(cluster.tokens.size()) / segment.profile[d];
    }
    cluster.spread = live == 0 ? 0 : sum / live;
  }
  return segment;
}

Int8Row int8_row(const Vec& x) {
  double largest = 0;
  for (const double v : x) largest = std::isnan(v) ? largest : std::max(largest, std::abs(v));
  Int8Row row{std::max(largest / 127, 1e-12), {}};
  for (const double v : x) {
    row.codes.push_back(std::isnan(v) ? 0 : static_cast<int>(std::nearbyint(v / row.scale)));
  }
  return row;
}

}  // namespace clusterkv::reference
