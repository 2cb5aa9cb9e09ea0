// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "src/index/cluster_index.hpp"
#include "src/recall/stored_rows.hpp"
#include "src/stages.hpp"

namespace clusterkv::cpu {

using recall::Access;
using recall::for_each_page_run;

/// Where the rows of one layer lie.
struct RowSource {
  RowStore live;
  RowStore stored;
  std::uint32_t* positions;
  std::int64_t positions_stride;
  int num_kv_heads;
  const recall::StoredRows* rows;  ///< `stored` is a layer of it
  int layer;

  /// Before rows of `stored` are touched. \throws FileError
  void fetch(int head, std::uint32_t row, std::int64_t count, Access access) const {
    rows->fetch(layer, head, {row, count}, access);
  }
};

/// All rows of a segment, in all heads, before some are touched. \throws FileError
void fetch_segment(const RowSource& source, const SegmentView& segment,
                   const std::uint32_t* row_pages, Access access);

/// visit(row, token) for the rows of a segment and KV head whose tokens are in [first, last): row of the
/// store, position. They are in cluster order, another one for each head: looks at all of them.
template <class Visit>
void for_each_stored_row(const RowSource& source, const SegmentView& segment,
                         const std::uint32_t* row_pages, int head, std::int64_t first,
                         std::int64_t last, const Visit& visit) {
  const std::uint32_t* positions = source.positions + head * source.positions_stride;
  for (int i = 0; i < segment.num_rows; ++i) {
    const std::uint32_t row = paged_row(row_pages, segment.first_row + i);
    const std::int64_t token = positions[row];
    if (token >= first && token < last) visit(row, token);
  }
}

/// ClusterKVCache::read_rows().
void read_rows(const RowSource& source, const RowRange& range, const Sequence& sequence,
               const TensorView& key, const TensorView& value);

}  // namespace clusterkv::cpu
