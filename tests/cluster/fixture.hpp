// SPDX-License-Identifier: Apache-2.0
//
// A run of keys in a live store, as every op of this stage takes it.
#pragma once

#include <vector>

#include "kernels/cluster/cluster.hpp"
#include "tests/reference/cluster.hpp"
#include "tests/support/stores.hpp"

namespace clusterkv::cluster {

using reference::Vec;
using testing::GuardedBytes;
using testing::OpCase;
using testing::Random;

/// The ops of one backend.
struct Ops {
  void (*assign)(const AssignParams&);
  void (*pack)(const PackParams&);
  void (*order)(const OrderParams&);
  void (*update)(const UpdateParams&);
  void (*segment)(const SegmentParams&, const SegmentScratch&);
};
inline Ops ops_of(Backend) {
  return {cpu().assign, cpu().pack_centroids, cpu().order_tokens, cpu().update_centroids,
          cpu().cluster_segment};
}

/// Keys at an odd place of the second of two KV heads; all other rows are NaN.
struct Keys {
  Keys(const OpCase& op, const std::vector<Vec>& rows, Random& random)
      : store(op.dtype, op.head_dim, 2, kFirst + static_cast<std::int64_t>(rows.size()), random) {
    const Vec nan(static_cast<std::size_t>(op.head_dim), NAN);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      store.set(1, kFirst + static_cast<std::int64_t>(i), rows[i], nan);
    }
    run = {store.view(), store.pages(), kFirst, static_cast<int>(rows.size()), 1};
    exact = store.keys(1, kFirst, static_cast<int>(rows.size()));
  }

  static constexpr std::int64_t kFirst = 203;
  testing::TestRows store;
  KeyRun run;
  std::vector<Vec> exact;  ///< as stored
};

/// Rows of small integers: every product and sum is exact in fp32, f16 and bf16 hold them.
inline std::vector<Vec> integer_rows(Random& random, int count, int dim, int largest) {
  std::vector<Vec> rows;
  for (int i = 0; i < count; ++i) {
    rows.emplace_back();
    for (int d = 0; d < dim; ++d) rows.back().push_back(random.between(-largest, largest));
  }
  return rows;
}

inline std::vector<Vec> normal_rows(Random& random, int count, int dim) {
  std::vector<Vec> rows;
  for (int i = 0; i < count; ++i) {
    const std::vector<float> row = random.normals(static_cast<std::size_t>(dim));
    rows.emplace_back(row.begin(), row.end());
  }
  return rows;
}

inline std::vector<float> flat(const std::vector<Vec>& rows) {
  std::vector<float> result;
  for (const Vec& row : rows) {
    for (const double x : row) result.push_back(static_cast<float>(x));
  }
  return result;
}

}  // namespace clusterkv::cluster
