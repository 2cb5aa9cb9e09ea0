// SPDX-License-Identifier: Apache-2.0
//
// Stage 2 in fp64: a segment's clusters, their means and spreads.
#pragma once

#include <vector>

#include "tests/reference/numeric.hpp"

namespace clusterkv::reference {

struct IndexedCluster {
  std::vector<int> tokens;  ///< in stored order
  Vec mean_key, mean_value;
  double spread = 0;
};

struct IndexedSegment {
  std::vector<IndexedCluster> clusters;  ///< those that have tokens, in label order
  Vec profile;                           ///< D_d
  Vec value_sum;
};

/// `labels` may leave numbers out.
IndexedSegment index_segment(const std::vector<Vec>& keys, const std::vector<Vec>& values,
                             const std::vector<int>& labels);

/// A row as int8 with one scale: max(max|x| / 127, 1e-12), half to even, NaN as 0.
struct Int8Row {
  double scale;
  std::vector<int> codes;
};
Int8Row int8_row(const Vec& x);

}  // namespace clusterkv::reference
