// SPDX-License-Identifier: Apache-2.0
#include "src/saved_parts.hpp"

#include <algorithm>
#include <vector>

#include "src/runtime/capacity.hpp"
#include "src/runtime/check.hpp"
#include "src/sequence.hpp"

namespace clusterkv {

using recall::for_each_page_run;
using runtime::fail;

namespace {

template <class T>
std::span<std::byte> bytes_of(T* data, std::int64_t count) {
  return {reinterpret_cast<std::byte*>(data), static_cast<std::size_t>(count) * sizeof(T)};
}

void visit_rows(const RowStore& store, int head, std::uint32_t row, std::int64_t count,
                PartVisitor& visitor) {
  visitor.visit(bytes_of(store.row(head, row), count * static_cast<std::int64_t>(store.row_bytes)));
}

void visit_block(const IndexStore& index, int head, std::uint32_t block, PartVisitor& visitor) {
  const auto of_centroids = static_cast<std::int64_t>(index.centroid_block_bytes());
  const auto of_means = static_cast<std::int64_t>(index.mean_block_bytes());
  const std::int64_t first = index.plane_block(head, block) * kBlockClusters;
  visitor.visit(bytes_of(index.block_centroids(head, block), of_centroids));
  visitor.visit(bytes_of(index.block_value_means(head, block), of_means));
  for (float* numbers : {index.centroid_scale, index.value_scale, index.spread}) {
    visitor.visit(bytes_of(numbers + first, kBlockClusters));
  }
  visitor.visit(bytes_of(index.block_offset(head, block), kBlockClusters + 1));
  visitor.end_block();
}

/// One layer and KV head.
struct Plane {
  RowStore live;
  RowStore stored;
  std::uint32_t* positions;
  IndexStore index;  ///< not read if dense
  int layer;
  int head;
  bool dense;
};

template <class Visit>
void for_each_plane(const SavedStores& stores, const Visit& visit) {
  for (int layer = 0; layer < stores.config.model.num_layers; ++layer) {
    const bool dense = runtime::is_dense_layer(stores.config, layer);
    for (int head = 0; head < stores.config.model.num_kv_heads; ++head) {
      visit(Plane{stores.live.layer(layer), stores.stored(layer),
                  stores.index.positions(layer) + head * stores.index.positions_stride(),
                  dense ? IndexStore{} : stores.index.layer(layer), layer, head, dense});
    }
  }
}

void visit_plane(const SavedStores& stores, const Plane& plane, const Sequence& sequence,
                 PartVisitor& visitor) {
  const int head = plane.head;
  // Blocks of so many tokens, because pending ones begin anywhere in a page.
  const auto visit_live = [&](std::int64_t first, std::int64_t last) {
    for (; first < last; first += kPageRows) {
      for_each_page_run(sequence.live_pages(), first, std::min(last, first + kPageRows),
                        [&](std::uint32_t row, std::int64_t count) {
                          visit_rows(plane.live, head, row, count, visitor);
                        });
      visitor.end_block();
    }
  };
  const std::int64_t pending = sequence.num_sinks() + sequence.segment_rows();
  const std::int64_t first = sequence.live_row(pending);
  visit_live(0, sequence.num_sinks());
  visit_live(first, first + sequence.length() - pending);
  for_each_page_run(sequence.row_pages().data(), 0, sequence.segment_rows(),
                    [&](std::uint32_t row, std::int64_t count) {
                      if (plane.stored.base != nullptr) {
                        if (stores.fetch) stores.fetch(plane.layer, head, row, count);
                        visit_rows(plane.stored, head, row, count, visitor);
                      }
                      visitor.visit(bytes_of(plane.positions + row, count));
                      visitor.end_block();
                    });
  if (plane.dense) return;
  const IndexStore& index = plane.index;
  for (int i = 0; i < sequence.num_segments(); ++i) {
    const SegmentView& segment = sequence.segment(i);
    for (int b = 0; b < segment.num_blocks; ++b) {
      visit_block(index, head, sequence.blocks_of(segment)[b], visitor);
    }
    visitor.visit(bytes_of(index.record_profile(head, segment.record), index.head_dim));
    visitor.visit(bytes_of(index.record_value_sum(head, segment.record), index.value_dim));
    visitor.visit(bytes_of(index.record_used(head, segment.record), 1));
    visitor.end_block();
  }
}

// ------------------------------------------------------------------------------------- checks
constexpr int kOffsets = kBlockClusters + 1;

/// The tables of a plane that others are found by, of one sequence.
struct Tables {
  std::vector<std::uint32_t> positions;  ///< [row of the sequence]
  std::vector<std::uint32_t> offsets;    ///< [block of the sequence, kOffsets]
  std::vector<std::int32_t> used;        ///< [segment]
};

Tables read_tables(const Plane& plane, const Sequence& sequence, const TableReader& reader) {
  Tables tables;
  tables.positions.resize(static_cast<std::size_t>(sequence.segment_rows()));
  std::uint32_t* to = tables.positions.data();
  for_each_page_run(sequence.row_pages().data(), 0, sequence.segment_rows(),
                    [&](std::uint32_t row, std::int64_t count) {
                      const auto rows = static_cast<std::size_t>(count);
                      reader.copy(to, plane.positions + row, rows * sizeof *to);
                      to += rows;
                    });
  if (!plane.dense) {
    std::size_t blocks = 0;
    for (int i = 0; i < sequence.num_segments(); ++i) {
      blocks += static_cast<std::size_t>(sequence.segment(i).num_blocks);
    }
    tables.offsets.resize(blocks * kOffsets);
    tables.used.resize(static_cast<std::size_t>(sequence.num_segments()));
    std::uint32_t* offset = tables.offsets.data();
    for (int i = 0; i < sequence.num_segments(); ++i) {
      const SegmentView& segment = sequence.segment(i);
      for (int b = 0; b < segment.num_blocks; ++b, offset += kOffsets) {
        const std::uint32_t block = sequence.blocks_of(segment)[b];
        reader.copy(offset, plane.index.block_offset(plane.head, block), kOffsets * sizeof *offset);
      }
      reader.copy(&tables.used[static_cast<std::size_t>(i)],
                  plane.index.record_used(plane.head, segment.record), sizeof tables.used[0]);
    }
  }
  reader.wait();
  return tables;
}

/// Offsets that ascend from the segment's first row to its end: used clusters, then empty ones.
bool are_clusters(const std::uint32_t* offset, std::int32_t used, const SegmentView& segment) {
  auto at = static_cast<std::uint32_t>(segment.first_row);
  const std::uint32_t end = at + static_cast<std::uint32_t>(segment.num_rows);
  std::int32_t with_rows = 0;
  for (int b = 0; b < segment.num_blocks; ++b, offset += kOffsets) {
    if (offset[0] != at) return false;
    for (int c = 0; c < kBlockClusters; ++c, at = offset[c]) {
      if (offset[c + 1] < at || offset[c + 1] > end) return false;
      if (offset[c + 1] == at && at != end) return false;
      with_rows += offset[c + 1] > at ? 1 : 0;
    }
  }
  return at == end && with_rows == used;
}

/// Each token of the segment once.
bool are_positions(const std::uint32_t* positions, std::int64_t first_token, int num_rows) {
  std::vector<bool> seen(static_cast<std::size_t>(num_rows));
  for (int i = 0; i < num_rows; ++i) {
    const std::int64_t token = std::int64_t{positions[i]} - first_token;
    if (token < 0 || token >= num_rows || seen[static_cast<std::size_t>(token)]) return false;
    seen[static_cast<std::size_t>(token)] = true;
  }
  return true;
}

void check_plane(const Plane& plane, const Sequence& sequence, const TableReader& reader) {
  const Tables tables = read_tables(plane, sequence, reader);
  const std::uint32_t* offset = tables.offsets.data();
  for (int i = 0; i < sequence.num_segments(); ++i) {
    const SegmentView& segment = sequence.segment(i);
    if (!are_positions(tables.positions.data() + segment.first_row,
                       sequence.num_sinks() + segment.first_row, segment.num_rows)) {
      fail<FormatError>("read: positions of segment {} are none, expected each token once", i);
    }
    if (plane.dense) continue;
    if (!are_clusters(offset, tables.used[static_cast<std::size_t>(i)], segment)) {
      fail<FormatError>("read: clusters of segment {} are none, expected all of its rows", i);
    }
    offset += std::ptrdiff_t{segment.num_blocks} * kOffsets;
  }
}

}  // namespace

void visit_parts(const SavedStores& stores, const Sequence& sequence, PartVisitor& visitor) {
  for_each_plane(stores,
                 [&](const Plane& plane) { visit_plane(stores, plane, sequence, visitor); });
}

void check_parts(const SavedStores& stores, const Sequence& sequence, const TableReader& reader) {
  for_each_plane(stores, [&](const Plane& plane) { check_plane(plane, sequence, reader); });
}

}  // namespace clusterkv
