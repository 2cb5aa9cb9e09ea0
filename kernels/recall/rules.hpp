// SPDX-License-Identifier: Apache-2.0
//
// Stage 4 of 5: recall. Decisions that both backends share, so that hit rates agree exactly.
#pragma once

#include <cstdint>

#include "clusterkv/config.hpp"
#include "kernels/common/host_device.hpp"
#include "kernels/common/tuning.hpp"

namespace clusterkv::recall {

/// Quad of the store that holds a row.
CLUSTERKV_HD inline std::uint32_t quad_of(std::uint32_t row) {
  return row / static_cast<std::uint32_t>(kQuadRows);
}

/// With kEstimateMisses: quads that a plan row and KV head must bring in are numbered from 0, in the order of
/// its lists, each once. Those from the limit on are left where they are, and so is every cluster that
/// touches one: it leaves its list, and its mass goes to the tail. Those before it are brought in, also where
/// their cluster leaves: it will be asked for again. A quad that is no hit any more (see is_retained) gives its
/// slot back first, and is brought in as others are.
CLUSTERKV_HD inline bool is_left(int number, int max_transfers) {
  return number >= max_transfers;
}
inline constexpr int kNoLimit = 0x7fffffff;

/// Whole quads of StoreConfig::transfer_tokens, with kEstimateMisses.
inline int max_transfers(const StoreConfig& store) {
  return store.misses == Misses::kEstimateMisses ? store.transfer_tokens / kQuadRows : kNoLimit;
}

/// State of a slot. `stamp` is the number of the plan that last used it; 0: never.
struct SlotState {
  std::uint32_t owner;  ///< quad of the store; kNoQuad: empty
  std::uint32_t stamp;
  bool referenced;  ///< second chance: set by a hit, cleared by the passing hand
};
inline constexpr std::uint32_t kNoQuad = 0xffffffffU;

/// Whether a quad found in a slot counts as a hit: not if it was last used before the step from
/// which on this row still retains quads.
CLUSTERKV_HD inline bool is_retained(const SlotState& slot, std::uint32_t retain_from) {
  return slot.stamp >= retain_from;
}

/// The hand looks at a slot: true if it may be taken now. Clears the second chance otherwise. Slots
/// used by the running plan stay.
CLUSTERKV_HD inline bool take_slot(SlotState& slot, std::uint32_t plan_number) {
  if (slot.owner != kNoQuad && slot.stamp == plan_number) return false;
  const bool taken = slot.owner == kNoQuad || !slot.referenced;
  slot.referenced = false;
  return taken;
}

}  // namespace clusterkv::recall
