// SPDX-License-Identifier: Apache-2.0
#include "tests/reference/cluster.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace clusterkv::reference {

namespace {

/// In steps of a half-precision format: fp32 errs by 1e-6 of a mean, which is 1e-3 of a step of f16.
constexpr double kMeanError = 2e-3;

/// Sum of |key_d| slack_d.
double slack_of(const Vec& key, const Packed& packed, std::size_t c) {
  double sum = 0;
  if (packed.slack.empty()) return sum;
  for (std::size_t d = 0; d < key.size(); ++d) sum += std::abs(key[d]) * packed.slack[c][d];
  return sum;
}

}  // namespace

Assignment assign(const std::vector<Vec>& keys, const Packed& packed) {
  const auto& [centroids, bias, slack] = packed;
  Assignment result;
  for (const Vec& key : keys) {
    Vec scores;
    for (std::size_t c = 0; c < centroids.size(); ++c) {
      scores.push_back(dot(key, centroids[c]) - bias[c]);
    }
    const auto best = std::max_element(scores.begin(), scores.end());
    const auto chosen = static_cast<std::size_t>(best - scores.begin());
    result.labels.push_back(static_cast<int>(chosen));
    // Equal centroids tie in any arithmetic, so they do not count as close.
    double gap = std::numeric_limits<double>::infinity();
    double largest = 1e-30;
    for (std::size_t c = 0; c < scores.size(); ++c) {
      largest = std::max(largest, std::abs(scores[c]));
      if (centroids[c] == centroids[chosen] && bias[c] == bias[chosen]) continue;
      gap = std::min(gap, *best - scores[c] - slack_of(key, packed, c));
    }
    gap -= slack_of(key, packed, chosen);
    result.smallest_gap = std::min(result.smallest_gap, gap / largest);
  }
  return result;
}

Packed pack(const std::vector<Vec>& centroids, Metric metric, DType dtype) {
  Packed packed;
  for (Vec centroid : centroids) {
    const double square = dot(centroid, centroid);
    if (metric == Metric::kCosine) {
      for (double& x : centroid) x /= std::max(std::sqrt(square), 1e-12);
    }
    packed.bias.push_back(metric == Metric::kL2 ? square / 2 : 0.0);
    if (dtype != DType::kF32) {
      Vec slack;
      for (double& x : centroid) {
        const double step = step_of(dtype, x);
        slack.push_back(is_near_middle(x, step, kMeanError) ? step : 0);
        x = rounded(dtype, x);
      }
      packed.slack.push_back(slack);
    }
    packed.centroids.push_back(centroid);
  }
  return packed;
}

std::vector<Vec> update(const std::vector<Vec>& keys, const std::vector<int>& labels,
                        std::vector<Vec> centroids) {
  for (std::size_t c = 0; c < centroids.size(); ++c) {
    Vec sum(centroids[c].size());
    int count = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (labels[i] != static_cast<int>(c)) continue;
      ++count;
      for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += keys[i][d];
    }
    if (count == 0) continue;
    for (std::size_t d = 0; d < sum.size(); ++d) centroids[c][d] = sum[d] / count;
  }
  return centroids;
}

std::vector<int> order_of(const std::vector<int>& labels) {
  std::vector<int> order(labels.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return labels[static_cast<std::size_t>(a)] < labels[static_cast<std::size_t>(b)];
  });
  return order;
}

Assignment kmeans(const std::vector<Vec>& keys, const std::vector<int>& starts, Metric metric,
                  int iterations, DType dtype) {
  std::vector<Vec> centroids;
  for (const int token : starts) centroids.push_back(keys[static_cast<std::size_t>(token)]);
  Assignment result;
  for (int i = 0; i < iterations; ++i) {
    const Assignment step = assign(keys, pack(centroids, metric, dtype));
    result.labels = step.labels;
    result.smallest_gap = std::min(result.smallest_gap, step.smallest_gap);
    centroids = update(keys, result.labels, centroids);
  }
  return result;
}

}  // namespace clusterkv::reference
