// SPDX-License-Identifier: Apache-2.0
//
// A clustered segment in a live store and the place where its index goes.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/index/index.hpp"
#include "tests/reference/cluster.hpp"
#include "tests/reference/index.hpp"
#include "tests/support/stores.hpp"

namespace clusterkv::index {

using reference::Vec;
using testing::OpCase;
using testing::Random;

struct Ops {
  void (*store_segment)(const StoreParams&, const SegmentSource&, const SegmentTarget&);
  void (*build_index)(const BuildParams&, const SegmentSource&, const SegmentTarget&);
  void (*add_value_sum)(const IndexStore&, int, std::uint32_t, std::uint32_t);
};
inline Ops ops_of(Backend) {
  return {cpu().store_segment, cpu().build_index, cpu().add_value_sum};
}

inline constexpr std::int64_t kFirstLive = 201;
inline constexpr std::int64_t kFirstToken = 5000;

inline std::vector<std::int32_t> offsets_of(const std::vector<int>& labels, int num_clusters) {
  std::vector<std::int32_t> offset;
  for (int k = 0; k <= num_clusters; ++k) {
    offset.push_back(static_cast<std::int32_t>(
        std::count_if(labels.begin(), labels.end(), [&](int l) { return l < k; })));
  }
  return offset;
}

inline std::vector<int> random_labels(Random& random, int count, int num_clusters) {
  std::vector<int> labels;
  for (int i = 0; i < count; ++i) labels.push_back(random.between(0, num_clusters - 1));
  return labels;
}

}  // namespace clusterkv::index
