// SPDX-License-Identifier: Apache-2.0
#include "src/recall/slot_pool.hpp"

#include <algorithm>

namespace clusterkv::recall {

SlotPool::SlotPool(std::uint32_t* directory, std::int64_t num_quads, std::int64_t num_slots)
    : directory_(directory),
      slots_(static_cast<std::size_t>(num_slots), SlotState{kNoQuad, 0, false}) {
  std::fill(directory, directory + num_quads, kNoSlot);
}

void SlotPool::look_up(const RecallRequest& request, std::uint32_t plan_number,
                       std::uint32_t retain_from, RecallPlan& plan) {
  plan.first_copy = plan.num_copies;
  plan.max_transfers = request.max_transfers;
  for (int list = 0; list < request.num_lists; ++list) {
    const std::uint32_t* rows = request.rows + std::int64_t{list} * request.capacity;
    std::uint32_t previous = kNoQuad;
    for (int i = 0; i < request.counts[list]; ++i) {
      if (rows[i] < request.num_near) continue;
      const std::uint32_t quad = quad_of(rows[i]);
      if (quad != previous) look_up_quad(quad, plan_number, retain_from, plan);
      previous = quad;
    }
  }
}

void SlotPool::look_up_quad(std::uint32_t quad, std::uint32_t plan_number,
                            std::uint32_t retain_from, RecallPlan& plan) {
  const std::uint32_t found = directory_[quad];
  if (found == kClaim || found == kLeft) return;
  if (found == kNoSlot) return claim({quad, kNoSlot}, plan);
  SlotState& slot = slots_[found];
  const bool retained = is_retained(slot, retain_from);
  const bool is_first = slot.stamp != plan_number;
  slot.stamp = plan_number;
  if (!is_first) return;  // another list, or another row, of this step brought it
  if (!retained && plan.max_transfers == kNoLimit) return claim({quad, found}, plan);
  if (!retained) {
    slot = {kNoQuad, 0, false};
    return claim({quad, kNoSlot}, plan);
  }
  slot.referenced = true;
  ++plan.hits;
}

void SlotPool::claim(const QuadCopy& copy, RecallPlan& plan) {
  if (is_left(plan.num_copies - plan.first_copy, plan.max_transfers)) {
    directory_[copy.quad] = kLeft;
    plan.copies[plan.num_copies++] = {copy.quad, kLeft};
    return;
  }
  if (copy.slot == kNoSlot) directory_[copy.quad] = kClaim;
  plan.copies[plan.num_copies++] = copy;
}

void SlotPool::leave_out(const SelectionLists& lists, int row, int head, RecallPlan& plan) const {
  std::int32_t* ids = lists.clusters_of(row, head);
  std::int32_t* counts = lists.counts_of(row, head);
  std::uint32_t* rows = lists.rows_of(row, head);
  std::int32_t& num_clusters = lists.num_clusters[lists.list(row, head)];
  const std::uint32_t* next = rows;
  int kept = 0;
  for (int i = 0; i < num_clusters; ++i) {
    const std::uint32_t* first = next;
    const int count = counts[i];
    next += count;
    const bool leaves =
        std::any_of(first, next, [&](std::uint32_t r) { return is_left_out(quad_of(r)); });
    if (leaves) {
      ++plan.left_clusters;
      plan.left_rows += count;
      continue;
    }
    rows = std::copy(first, next, rows);
    ids[kept] = ids[i];
    counts[kept++] = count;
  }
  std::fill(ids + kept, ids + num_clusters, -1);
  std::fill(counts + kept, counts + num_clusters, 0);
  num_clusters = kept;
  lists.num_rows[lists.list(row, head)] =
      static_cast<std::int32_t>(rows - lists.rows_of(row, head));
}

void SlotPool::give_slots(std::uint32_t plan_number, RecallPlan& plan) {
  int copies = plan.first_copy;
  for (int i = plan.first_copy; i < plan.num_copies; ++i) {
    QuadCopy copy = plan.copies[i];
    if (copy.slot == kLeft) {
      directory_[copy.quad] = kNoSlot;
      continue;
    }
    if (copy.slot == kNoSlot) {
      copy.slot = find_victim(plan_number);
      directory_[copy.quad] = copy.slot;
      if (copy.slot == kNoSlot) {
        ++plan.in_place;
        plan.copies[copies++] = copy;
        continue;
      }
      SlotState& slot = slots_[copy.slot];
      if (slot.owner != kNoQuad) directory_[slot.owner] = kNoSlot;
      slot = {copy.quad, plan_number, false};
    }
    ++plan.misses;
    plan.copies[copies++] = copy;
  }
  plan.num_copies = copies;
}

std::uint32_t SlotPool::find_victim(std::uint32_t plan_number) noexcept {
  if (full_in_ == plan_number) return kNoSlot;
  // Twice round: once to clear second chances, once to find what was cleared.
  for (std::size_t looked = 0; looked < 2 * slots_.size(); ++looked) {
    const std::size_t at = hand_;
    hand_ = hand_ + 1 == slots_.size() ? 0 : hand_ + 1;
    if (take_slot(slots_[at], plan_number)) return static_cast<std::uint32_t>(at);
  }
  full_in_ = plan_number;
  return kNoSlot;
}

void SlotPool::drop(std::uint32_t first_quad, std::uint32_t count) noexcept {
  for (std::uint32_t quad = first_quad; quad < first_quad + count; ++quad) {
    if (directory_[quad] == kNoSlot) continue;
    slots_[directory_[quad]] = {kNoQuad, 0, false};
    directory_[quad] = kNoSlot;
  }
}

}  // namespace clusterkv::recall
