// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of cluster/ and index/ are told of segments, as views.hpp tells of sequences.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/views.hpp"

namespace clusterkv {

/// A segment about to be clustered, the same for all layers and heads.
struct SealView {
  SegmentView segment;
  const std::uint32_t* live_pages;
  const std::uint32_t* row_pages;
  const std::uint32_t* blocks;  ///< [segment.num_blocks]
  std::int64_t first_live_row;  ///< of its first token
  std::int64_t first_token;     ///< position in the sequence
  std::int32_t num_clusters;    ///< before empty ones are dropped
  std::uint32_t previous;       ///< record of the segment before; its own if there is none
};

/// Scratch of the jobs of a launch, an area each: labels first, then these, in bytes from its begin.
struct SealScratch {
  std::byte* base;  ///< area of the first job
  std::size_t area_bytes;
  std::size_t order, offset, used, variance, value_sum;
  std::size_t centroids, bias, cursor;  ///< of large runs only

  CLUSTERKV_HD std::byte* area(int job) const {
    return base + static_cast<std::size_t>(job) * area_bytes;
  }
};

}  // namespace clusterkv
