// SPDX-License-Identifier: Apache-2.0
//
// Stage 3 of 5, select, on a device: whole plans a launch. Pointers inside the parameters are device
// addresses; the contracts are those of select/select.hpp.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/plan_shape.hpp"
#include "kernels/select/select.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// Which instructions multiply int8 centroids. The sums are exact, so the bits are the same.
enum class IntegerMath : std::uint8_t {
  kMma,
  kDp4a,  ///< for devices on which s8 mma turns out slow
};

/// All blocks, KV heads and rows. Same bits as the CPU's score_clusters().
void score_clusters(const select::ScoreParams& params, const PlanShape& shape,
                    IntegerMath math = IntegerMath::kMma);

/// Clusters one block of threads looks at; longer rows are cut into slices.
inline constexpr int kSliceClusters = 4096;

/// Memory of one select_clusters() call, [num_rows, selection_heads, …].
struct SelectScratch {
  std::uint32_t* keys;     ///< […, slices of shape.max_blocks, kSliceClusters]
  std::int32_t* ids;       ///< as keys
  std::int32_t* counts;    ///< […, slices]
  std::uint32_t* arrived;  ///< [num_rows, selection_heads], 0 before and after
};
constexpr int num_slices(int max_blocks) {
  return (max_blocks * kBlockClusters + kSliceClusters - 1) / kSliceClusters;
}

/// Lists with their row ids, and totals. Same choice as the CPU's select_clusters() and the CPU's expand_rows().
void select_clusters(const select::SelectParams& params, const SelectScratch& scratch,
                     const PlanShape& shape);

/// Row ids of lists that came from elsewhere.
void expand_rows(const select::SelectParams& params, const PlanShape& shape);

}  // namespace clusterkv::CLUSTERKV_DEVICE
