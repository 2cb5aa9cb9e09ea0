// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

namespace clusterkv::testing {

/// Seeded draws, the same on every machine with this standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  int between(int low, int high) {
    return low + static_cast<int>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int>(values.size()) - 1)];
  }
  float normal() { return normal_(engine_); }
  std::vector<float> normals(std::size_t count, float scale = 1.0F) {
    std::vector<float> values(count);
    for (float& value : values) value = scale * normal();
    return values;
  }
  std::uint64_t bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

/// Rows as real keys are: round `num_clusters` directions, some channels with a mean of `outlier`
/// and the others around 0. Well separated: noise is a tenth of the distance of two directions.
std::vector<std::vector<double>> clustered_rows(Random& random, int num_rows, int dim,
                                                int num_clusters, double outlier = 12.0);

/// A permutation of 0 .. count - 1.
std::vector<int> permutation(Random& random, int count);

}  // namespace clusterkv::testing
