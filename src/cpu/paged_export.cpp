// SPDX-License-Identifier: Apache-2.0
#include "src/cpu/paged_export.hpp"

#include <cstdint>
#include <limits>

#include "src/runtime/check.hpp"

namespace clusterkv::cpu {

using runtime::fail;

namespace {

/// Entry of a token in the engine's pool.
std::int64_t entry_of(const PagedTarget& target, int row, std::int64_t token, int num_kv_heads,
                      int kv_head) {
  const TensorView& table = target.block_table;
  const std::int64_t column = token / target.block_tokens;
  if (column >= table.shape[1]) {
    fail<ShapeError>("block_table: {} blocks a row, expected more than {} for token {}",
                     table.shape[1], column, token);
  }
  const std::int64_t block = static_cast<const std::int32_t*>(
      table.data)[row * table.stride[0] + column * table.stride[1]];
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const std::int64_t slot = block * target.block_tokens + token % target.block_tokens;
  // A slot may be up to 2^62, so its product with the heads is compared, not formed.
  if (block < 0 || slot > (kMost - kv_head) / num_kv_heads) {
    fail<ValueError>("block_table: row {} has block {}, expected >= 0 and an entry below 2^31", row,
                     block);
  }
  return slot * num_kv_heads + kv_head;
}

/// visit(list, entry) for all entries of all lists.
template <class Visit>
void for_each_entry(const SelectionReader& reader, int num_rows, int num_kv_heads,
                    const PagedTarget& target, const Visit& visit) {
  const int heads = reader.num_heads();
  for (int row = 0; row < num_rows; ++row) {
    for (int head = 0; head < heads; ++head) {
      const int kv_head = head / (heads / num_kv_heads);
      reader.for_each_token(row, head, [&](std::int64_t token) {
        visit(row * heads + head, entry_of(target, row, token, num_kv_heads, kv_head));
      });
    }
  }
}

}  // namespace

void write_paged(const SelectionReader& reader, int num_rows, int num_kv_heads,
                 const PagedTarget& target) {
  const std::int64_t lists = std::int64_t{num_rows} * reader.num_heads();
  std::int64_t needed = 0;  // a first walk, so that nothing is written if the second would fail
  for_each_entry(reader, num_rows, num_kv_heads, target, [&](int, std::int64_t) { ++needed; });
  if (needed > target.indices.shape[0]) {
    fail<ShapeError>("indices: {} entries, expected at least {}", target.indices.shape[0], needed);
  }
  auto* indptr = static_cast<std::int32_t*>(target.indptr.data);
  auto* indices = static_cast<std::int32_t*>(target.indices.data);
  for (std::int64_t i = 0; i <= lists; ++i) indptr[i * target.indptr.stride[0]] = 0;
  std::int64_t at = 0;
  for_each_entry(reader, num_rows, num_kv_heads, target, [&](int list, std::int64_t entry) {
    indices[at++ * target.indices.stride[0]] = static_cast<std::int32_t>(entry);
    indptr[(list + 1) * target.indptr.stride[0]] = static_cast<std::int32_t>(at);
  });
  for (std::int64_t i = 1; i <= lists; ++i) {  // an empty list ends where it begins
    std::int32_t& end = indptr[i * target.indptr.stride[0]];
    end = std::max(end, indptr[(i - 1) * target.indptr.stride[0]]);
  }
}

}  // namespace clusterkv::cpu
