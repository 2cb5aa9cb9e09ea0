// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "clusterkv/config.hpp"
#include "clusterkv/memory.hpp"
#include "kernels/common/views.hpp"
#include "src/runtime/buffer.hpp"
#include "src/runtime/capacity.hpp"

namespace clusterkv::recall {

/// Bytes of a row: key and value of one token and KV head.
std::size_t row_bytes(const ModelShape& model);

/// The rows of all layers and KV heads in one allocation: [layer, kv_head, row].
class RowArena {
 public:
  RowArena() = default;
  RowArena(const ModelShape& model, std::int64_t num_pages, MemoryResource& memory,
           const char* what, Device device = {});
  static std::size_t bytes(const ModelShape& model, std::int64_t num_pages);

  /// Null base if the arena is empty.
  [[nodiscard]] RowStore layer(int layer) const;

 private:
  RowStore first_layer_;
  int num_kv_heads_ = 0;
  runtime::Buffer memory_;
};

/// visit(row, count) for logical rows [first, last) of a page table, where they lie together.
template <class Visit>
void for_each_page_run(const std::uint32_t* pages, std::int64_t first, std::int64_t last,
                       const Visit& visit) {
  while (first < last) {
    const std::int64_t end = std::min(last, (first / kPageRows + 1) * kPageRows);
    visit(paged_row(pages, first), end - first);
    first = end;
  }
}

}  // namespace clusterkv::recall
