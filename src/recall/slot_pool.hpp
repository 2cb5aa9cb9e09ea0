// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/views.hpp"
#include "kernels/recall/recall.hpp"
#include "kernels/recall/rules.hpp"

namespace clusterkv::recall {

/// The store rows that one plan row wants from one KV head: one list a selection head.
struct RecallRequest {
  const std::uint32_t* rows;   ///< [num_lists, capacity]
  const std::int32_t* counts;  ///< [num_lists]
  int num_lists;
  int capacity;
  int max_transfers = kNoLimit;  ///< quads that may be brought in
  std::uint32_t num_near = 0;    ///< rows of the store that are not recalled, the first ones
};

/// What must be copied, and how the look-ups went. Each quad counts once a plan row.
struct RecallPlan {
  QuadCopy* copies;  ///< room for one entry a requested row; those read in place have no slot
  int num_copies = 0;
  int first_copy = 0;            ///< of the running plan row
  int max_transfers = kNoLimit;  ///< of the running plan row
  std::int64_t hits = 0;
  std::int64_t misses = 0;
  std::int64_t in_place = 0;       ///< quads without a slot: read in the store
  std::int64_t left_clusters = 0;  ///< that left their lists, and their rows
  std::int64_t left_rows = 0;
  bool failed = false;  ///< what is to be copied could not be read
};

/// Which quads of the store lie in which slots, for one layer and KV head. Knows numbers only, not
/// where memory lies.
///
/// Invariant: directory[q] = s exactly if state of slot s has owner q.
class SlotPool {
 public:
  SlotPool(std::uint32_t* directory, std::int64_t num_quads, std::int64_t num_slots);

  /// Looks the quads of one plan row up.
  /// \param plan_number  of the running step; > 0, and never smaller than before
  /// \param retain_from  quads last used before this plan count as misses and are copied again
  void look_up(const RecallRequest& request, std::uint32_t plan_number, std::uint32_t retain_from,
               RecallPlan& plan);

  /// Between look_up() and give_slots(): whether a quad that it wanted is past the limit.
  [[nodiscard]] bool is_left_out(std::uint32_t quad) const { return directory_[quad] == kLeft; }
  /// Between them: takes clusters out of a list that touch such a quad.
  void leave_out(const SelectionLists& lists, int row, int head, RecallPlan& plan) const;

  /// Makes the directory current after look_up(): gives slots to the missing quads, in order. A slot used in
  /// this step is never taken from its quad.
  void give_slots(std::uint32_t plan_number, RecallPlan& plan);

  /// The quads hold other rows from now on.
  void drop(std::uint32_t first_quad, std::uint32_t count) noexcept;

 private:
  /// Until slots are given, the directory of a missing quad holds kClaim, or kLeft past the limit.
  static constexpr std::uint32_t kClaim = 0xfffffffeU;
  static constexpr std::uint32_t kLeft = 0xfffffffdU;

  void look_up_quad(std::uint32_t quad, std::uint32_t plan_number, std::uint32_t retain_from,
                    RecallPlan& plan);
  void claim(const QuadCopy& copy, RecallPlan& plan);
  std::uint32_t find_victim(std::uint32_t plan_number) noexcept;

  std::uint32_t* directory_;  ///< [num_quads] slot or kNoSlot
  std::vector<SlotState> slots_;
  std::size_t hand_ = 0;
  std::uint32_t full_in_ = 0;  ///< plan in which all slots were found in use
};

}  // namespace clusterkv::recall
