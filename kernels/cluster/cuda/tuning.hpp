// SPDX-License-Identifier: Apache-2.0
//
// Sizes of the clustering kernels. They change speed, not answers.
#pragma once

namespace clusterkv {

/// Lanes that add up one cluster's keys, 16 bytes a lane: 8, 16 or 32. A channel is summed by one lane
/// in token order, so each gives the same bits. Benches set it from outside.
#ifdef CLUSTERKV_UPDATE_LANES
inline constexpr int kUpdateLanes = CLUSTERKV_UPDATE_LANES;
#else
inline constexpr int kUpdateLanes = 16;
#endif

/// Registers for key fragments: 32 keys a warp up to this head_dim, else 16.
inline constexpr int kTwoTilesHeadDim = 128;

}  // namespace clusterkv
