// SPDX-License-Identifier: Apache-2.0
//
// Which rows a plan row and selection head attend to, in logical order, and where each lies. The same
// code for both backends: an answer must not depend on who looks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attend/attend.hpp"
#include "kernels/common/host_device.hpp"

namespace clusterkv::attend {

class RowFinder {
 public:
  CLUSTERKV_HD RowFinder(const AttendParams& p, int row, int head)
      : p_(p),
        row_(p.rows[row]),
        kv_head_(head / (p.lists.selection_heads / p.num_kv_heads)),
        ids_(p.all_rows ? nullptr : p.lists.rows_of(row, head)),
        middle_(p.all_rows ? row_.num_stored : p.lists.num_rows[p.lists.list(row, head)]) {}

  [[nodiscard]] CLUSTERKV_HD std::int64_t count() const {
    return row_.num_sinks + middle_ + row_.num_pending;
  }

  /// Key of row i; its value follows.
  [[nodiscard]] CLUSTERKV_HD const std::byte* find(std::int64_t i) const {
    if (i < row_.num_sinks) return p_.live.row(kv_head_, paged_row(row_.live_pages, i));
    i -= row_.num_sinks;
    if (i >= middle_) {
      const std::int64_t pending = row_.first_pending + i - middle_;
      return p_.live.row(kv_head_, paged_row(row_.live_pages, pending));
    }
    return stored(ids_ == nullptr ? paged_row(row_.row_pages, i) : ids_[i]);
  }

 private:
  /// In its slot if it was recalled, else in the store.
  [[nodiscard]] CLUSTERKV_HD const std::byte* stored(std::uint32_t row) const {
    if (p_.slots.directory != nullptr && !p_.stored.is_near(row)) {
      const std::uint32_t slot =
          p_.slots.directory[kv_head_ * p_.slots.num_quads + row / kQuadRows];
      if (slot != kNoSlot) {
        const std::size_t slot_row = std::size_t{slot} * kQuadRows + row % kQuadRows;
        return p_.slots.slots + static_cast<std::size_t>(kv_head_) * p_.slots.head_stride +
               slot_row * p_.stored.row_bytes;
      }
    }
    return p_.stored.row(kv_head_, row);
  }

  const AttendParams& p_;
  const SequenceView& row_;
  int kv_head_;
  const std::uint32_t* ids_;
  std::int64_t middle_;
};

}  // namespace clusterkv::attend
