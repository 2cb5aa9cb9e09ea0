// SPDX-License-Identifier: Apache-2.0
#include "src/cpu/move_rows.hpp"

#include <algorithm>
#include <cstring>

namespace clusterkv::cpu {
namespace {

std::uint32_t first_row(std::uint32_t page) {
  return page * static_cast<std::uint32_t>(kPageRows);
}

void copy_rows(const RowStore& store, int head, const PageCopy& copy) {
  if (store.base == nullptr) return;
  std::memcpy(store.row(head, first_row(copy.to)), store.row(head, first_row(copy.from)),
              store.row_bytes * static_cast<std::size_t>(copy.num_rows));
}

}  // namespace

void copy_pages(const RowSource& layer, std::span<const PageCopy> rows,
                std::span<const PageCopy> live) {
  for (int head = 0; head < layer.num_kv_heads; ++head) {
    for (const PageCopy& copy : live) copy_rows(layer.live, head, copy);
    std::uint32_t* positions = layer.positions + head * layer.positions_stride;
    for (const PageCopy& copy : rows) {
      copy_rows(layer.stored, head, copy);
      std::copy_n(positions + first_row(copy.from), copy.num_rows, positions + first_row(copy.to));
    }
  }
}

void restore_rows(const RowSource& layer, const RestoredRows& rows, int head) {
  for_each_stored_row(
      layer, rows.segment, rows.row_pages, head, rows.first_token,
      rows.first_token + rows.num_tokens, [&](std::uint32_t row, std::int64_t token) {
        const std::uint32_t to = paged_row(rows.live_pages, token - rows.first_token);
        std::memcpy(layer.live.row(head, to), layer.stored.row(head, row), layer.live.row_bytes);
      });
}

}  // namespace clusterkv::cpu
