// SPDX-License-Identifier: Apache-2.0
#include "tests/support/random.hpp"

#include <numeric>
#include <utility>

namespace clusterkv::testing {

std::vector<std::vector<double>> clustered_rows(Random& random, int num_rows, int dim,
                                                int num_clusters, double outlier) {
  const auto columns = static_cast<std::size_t>(dim);
  std::vector<std::vector<double>> centres(static_cast<std::size_t>(num_clusters));
  for (auto& centre : centres) {
    for (std::size_t d = 0; d < columns; ++d) {
      centre.push_back(2.0 * double{random.normal()} + (d % 29 == 3 ? outlier : 0.0));
    }
  }
  std::vector<std::vector<double>> rows;
  for (int i = 0; i < num_rows; ++i) {
    rows.push_back(centres[static_cast<std::size_t>(random.between(0, num_clusters - 1))]);
    for (double& x : rows.back()) x += 0.2 * double{random.normal()};
  }
  return rows;
}

std::vector<int> permutation(Random& random, int count) {
  std::vector<int> result(static_cast<std::size_t>(count));
  std::iota(result.begin(), result.end(), 0);
  for (int i = count - 1; i > 0; --i) {
    std::swap(result[static_cast<std::size_t>(i)],
              result[static_cast<std::size_t>(random.between(0, i))]);
  }
  return result;
}

}  // namespace clusterkv::testing
