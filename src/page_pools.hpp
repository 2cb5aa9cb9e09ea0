// SPDX-License-Identifier: Apache-2.0
//
// Pages that sequences take from, share and give back to, and what a backend must be told of them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/tuning.hpp"
#include "src/runtime/capacity.hpp"
#include "src/runtime/page_pool.hpp"

namespace clusterkv {

using runtime::Capacity;
using runtime::PagePool;

/// Rows of the store whose quads hold other rows from this step on, in all layers.
struct StaleQuads {
  std::uint32_t first;
  std::uint32_t count;
};
inline constexpr std::uint32_t kQuadsPerPage = kPageRows / kQuadRows;

/// Ends of pages of the row store, each once, however often they are named between two steps.
class StalePages {
 public:
  explicit StalePages(std::int64_t num_pages) : place_(static_cast<std::size_t>(num_pages), kNone) {
    ranges_.reserve(place_.size());
  }

  /// A quad and those after it in its page.
  void add(std::uint32_t quad) noexcept {
    std::uint32_t& place = place_[quad / kQuadsPerPage];
    const StaleQuads range{quad, kQuadsPerPage - quad % kQuadsPerPage};
    if (place == kNone) {
      place = static_cast<std::uint32_t>(ranges_.size());
      ranges_.push_back(range);
    } else if (quad < ranges_[place].first) {
      ranges_[place] = range;
    }
  }
  [[nodiscard]] std::span<const StaleQuads> ranges() const { return ranges_; }
  void clear() noexcept {
    for (const StaleQuads& range : ranges_) place_[range.first / kQuadsPerPage] = kNone;
    ranges_.clear();
  }

 private:
  static constexpr std::uint32_t kNone = 0xffffffffU;

  std::vector<StaleQuads> ranges_;
  std::vector<std::uint32_t> place_;  ///< [page] in `ranges_`
};

/// The first rows of a page that begin another one too, in all layers.
struct PageCopy {
  std::uint32_t from;
  std::uint32_t to;
  int num_rows;
};

struct PagePools {
  explicit PagePools(const Capacity& capacity)
      : rows(capacity.row_pages),
        live(capacity.live_pages),
        blocks(capacity.blocks),
        records(capacity.records),
        stale(capacity.row_pages) {}

  /// Room for copies of a step of so many rows, at most.
  void reserve_copies(std::size_t num_rows, std::int64_t sink_pages) {
    row_copies.reserve(num_rows);
    live_copies.reserve(num_rows * static_cast<std::size_t>(sink_pages + 1));
  }

  void give_row_page_back(std::uint32_t page) noexcept {
    if (rows.give_back(page)) stale.add(page * kQuadsPerPage);
  }

  PagePool rows;
  PagePool live;
  PagePool blocks;
  PagePool records;
  /// Sinks and pending tokens of each sequence, and tokens of each segment: what max_tokens bounds.
  std::int64_t tokens = 0;
  StalePages stale;                   ///< since the last step began
  std::vector<PageCopy> row_copies;   ///< that the step which begins wants
  std::vector<PageCopy> live_copies;  ///< in this order: a page may be written after it was read
};

}  // namespace clusterkv
