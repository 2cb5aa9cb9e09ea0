// SPDX-License-Identifier: Apache-2.0
//
// Stage 1 in fp64. Shares with the library only the seeded draw and the number of clusters.
#pragma once

#include <cstdint>
#include <vector>

#include "clusterkv/config.hpp"
#include "tests/reference/numeric.hpp"

namespace clusterkv::reference {

struct Assignment {
  std::vector<int> labels;
  /// Smallest gap between the best and the second best score of any key, relative to the largest
  /// magnitude of its scores. Below about 1e-5 fp32 may decide otherwise.
  double smallest_gap = 1;
};

/// Centroids as the metric compares them, and their bias.
struct Packed {
  std::vector<Vec> centroids;
  Vec bias;
  /// How far an element may be from another one's, where fp32 may round it the other way; empty: nowhere.
  std::vector<Vec> slack = {};
};
/// Centroids are rounded to `dtype`.
Packed pack(const std::vector<Vec>& centroids, Metric metric, DType dtype = DType::kF32);

/// labels[i] = argmax_c keys[i].centroids[c] - bias[c], ties to the lowest id.
Assignment assign(const std::vector<Vec>& keys, const Packed& packed);

/// Means of the keys of each label; a label without keys keeps its centroid.
std::vector<Vec> update(const std::vector<Vec>& keys, const std::vector<int>& labels,
                        std::vector<Vec> centroids);

/// Tokens by (label, position).
std::vector<int> order_of(const std::vector<int>& labels);

/// K-means from the tokens `starts`. Keys are compared with centroids rounded to `dtype`.
Assignment kmeans(const std::vector<Vec>& keys, const std::vector<int>& starts, Metric metric,
                  int iterations, DType dtype = DType::kF32);

}  // namespace clusterkv::reference
