// SPDX-License-Identifier: Apache-2.0
//
// Stage 2 of 5: index. Decisions that both backends share.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.hpp"

namespace clusterkv::index {

/// Scale of an int8 row whose largest magnitude is `max_abs`. NaN counts as 0.
CLUSTERKV_HD inline float int8_scale(float max_abs) {
  const float scale = max_abs / 127.0F;
  return scale > 1e-12F ? scale : 1e-12F;
}

/// x / scale to the nearest integer, half to even, within +-127. NaN is stored as 0.
CLUSTERKV_HD inline std::int8_t to_int8(float x, float scale) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float ratio = x / scale;
  const float low = ratio > -127.0F ? ratio : -127.0F;
  const float clamped = low < 127.0F ? low : 127.0F;
  const float rounded = (clamped + kRound) - kRound;
  return static_cast<std::int8_t>(x == x ? rounded : 0.0F);
}

/// Blocks that hold `num_clusters` clusters.
CLUSTERKV_HD inline int blocks_of(int num_clusters, int block_clusters) {
  return (num_clusters + block_clusters - 1) / block_clusters;
}

}  // namespace clusterkv::index
