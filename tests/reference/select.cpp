// SPDX-License-Identifier: Apache-2.0
#include "tests/reference/select.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace clusterkv::reference {

double spread_weight(const Vec& query, double spread, const Vec& profile, double scale) {
  double sum = 0;
  for (std::size_t d = 0; d < query.size(); ++d) sum += query[d] * query[d] * profile[d];
  return spread * 0.5 * scale * scale * sum;
}

double mass_score(double z, double w, double softcap) {
  if (softcap == 0) return z + std::log2(1 + w);
  const double x = z / kLog2E / softcap;
  const double slope = 1 / (std::cosh(x) * std::cosh(x));
  const double curvature = -2 / softcap * std::tanh(x) * slope;
  const double factor = std::max(0.0, slope * slope + curvature);
  return softcap * kLog2E * std::tanh(x) + std::log2(1 + w * factor);
}

Score score(const Vec& query, const Vec& centroid, double spread, const Vec& profile, double scale,
            double softcap) {
  const double z = scale * kLog2E * dot(query, centroid);
  return {z, mass_score(z, spread_weight(query, spread, profile, scale), softcap)};
}

Vec quantised_query(const Vec& query) {
  double largest = 0;
  for (const double q : query) largest = std::max(largest, std::abs(q));
  // In fp32, as the rule says: it decides which of two neighbours an element in between becomes.
  const float inverse = largest > 0 ? 32512.0F / static_cast<float>(largest) : 0.0F;
  Vec result;
  for (const double q : query) {
    const float integer = std::nearbyint(static_cast<float>(q) * inverse);
    result.push_back(double{integer} * largest / 32512);
  }
  return result;
}

std::vector<int> choose(const Vec& keys, const std::vector<int>& sizes, int budget) {
  std::vector<std::size_t> ids(keys.size());
  std::iota(ids.begin(), ids.end(), std::size_t{0});
  const auto rank = [&](std::size_t c) {
    return std::isnan(keys[c]) ? -std::numeric_limits<double>::infinity() : keys[c];
  };
  std::stable_sort(ids.begin(), ids.end(),
                   [&](std::size_t a, std::size_t b) { return rank(a) > rank(b); });
  std::vector<int> taken(keys.size());
  int left = budget;
  for (const std::size_t c : ids) {
    taken[c] = std::min(sizes[c], left);
    left -= taken[c];
  }
  return taken;
}

Vec votes(const std::vector<Vec>& t, const std::vector<int>& sizes) {
  Vec vote(sizes.size());
  for (const Vec& head : t) {
    double max = -std::numeric_limits<double>::infinity();
    for (std::size_t c = 0; c < sizes.size(); ++c) {
      if (sizes[c] > 0) max = std::max(max, head[c]);
    }
    double sum = 0;
    for (std::size_t c = 0; c < sizes.size(); ++c) {
      if (sizes[c] > 0) sum += std::exp2(head[c] - max);
    }
    for (std::size_t c = 0; c < sizes.size(); ++c) {
      if (sizes[c] > 0) vote[c] += std::exp2(head[c] - max) / sum;
    }
  }
  return vote;
}

}  // namespace clusterkv::reference
