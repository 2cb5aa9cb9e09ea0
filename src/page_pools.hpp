// SPDX-License-Identifier: Apache-2.0
//
// Pages that sequences take from, share and give back to, and what a backend must be told of them.
#pragma once

#include <cstdint>
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
        records(capacity.records) {
    reserve_stale(0);
  }

  /// Room for what `more` segments add that become visible in a fork. All others add once a segment,
  /// and pages once each, between two steps.
  void reserve_stale(std::size_t more) {
    stale.reserve(stale.size() + more +
                  static_cast<std::size_t>(rows.num_pages() + records.num_pages()));
  }

  /// Room for copies of a step of so many rows, at most.
  void reserve_copies(std::size_t num_rows, std::int64_t sink_pages) {
    row_copies.reserve(num_rows);
    live_copies.reserve(num_rows * static_cast<std::size_t>(sink_pages + 1));
  }

  void give_row_page_back(std::uint32_t page) noexcept {
    constexpr std::uint32_t kQuadsPerPage = kPageRows / kQuadRows;
    if (rows.give_back(page)) stale.push_back({page * kQuadsPerPage, kQuadsPerPage});
  }

  PagePool rows;
  PagePool live;
  PagePool blocks;
  PagePool records;
  /// Sinks and pending tokens of each sequence, and tokens of each segment: what max_tokens bounds.
  std::int64_t tokens = 0;
  std::vector<StaleQuads> stale;      ///< since the last step began
  std::vector<PageCopy> row_copies;   ///< that the step which begins wants
  std::vector<PageCopy> live_copies;  ///< in this order: a page may be written after it was read
};

}  // namespace clusterkv
