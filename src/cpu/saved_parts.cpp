// SPDX-License-Identifier: Apache-2.0
#include "src/cpu/saved_parts.hpp"

#include <algorithm>
#include <vector>

#include "src/runtime/check.hpp"

namespace clusterkv::cpu {

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

/// Offsets that ascend from the segment's first row to its end: used clusters, then empty ones.
bool has_offsets(const SavedPlane& plane, const Sequence& sequence, const SegmentView& segment) {
  const std::uint32_t* blocks = sequence.blocks_of(segment);
  auto at = static_cast<std::uint32_t>(segment.first_row);
  const std::uint32_t end = at + static_cast<std::uint32_t>(segment.num_rows);
  std::int32_t used = 0;
  for (int b = 0; b < segment.num_blocks; ++b) {
    const std::uint32_t* offset = plane.index.block_offset(plane.head, blocks[b]);
    if (offset[0] != at) return false;
    for (int c = 0; c < kBlockClusters; ++c, at = offset[c]) {
      if (offset[c + 1] < at || offset[c + 1] > end) return false;
      if (offset[c + 1] == at && at != end) return false;
      used += offset[c + 1] > at ? 1 : 0;
    }
  }
  return at == end && used == *plane.index.record_used(plane.head, segment.record);
}

/// Each token of the segment once.
bool has_positions(const SavedPlane& plane, const Sequence& sequence, const SegmentView& segment) {
  const std::uint32_t* positions =
      plane.layer.positions + plane.head * plane.layer.positions_stride;
  std::vector<bool> seen(static_cast<std::size_t>(segment.num_rows));
  for (int i = 0; i < segment.num_rows; ++i) {
    const std::uint32_t row = paged_row(sequence.row_pages().data(), segment.first_row + i);
    const std::int64_t token =
        std::int64_t{positions[row]} - sequence.num_sinks() - segment.first_row;
    if (token < 0 || token >= segment.num_rows || seen[static_cast<std::size_t>(token)]) {
      return false;
    }
    seen[static_cast<std::size_t>(token)] = true;
  }
  return true;
}

}  // namespace

void visit_parts(const SavedPlane& plane, const Sequence& sequence, PartVisitor& visitor) {
  const int head = plane.head;
  // Blocks of so many tokens, because pending ones begin anywhere in a page.
  const auto visit_live = [&](std::int64_t first, std::int64_t last) {
    for (; first < last; first += kPageRows) {
      for_each_page_run(sequence.live_pages(), first, std::min(last, first + kPageRows),
                        [&](std::uint32_t row, std::int64_t count) {
                          visit_rows(plane.layer.live, head, row, count, visitor);
                        });
      visitor.end_block();
    }
  };
  const std::int64_t pending = sequence.num_sinks() + sequence.segment_rows();
  const std::int64_t first = sequence.live_row(pending);
  visit_live(0, sequence.num_sinks());
  visit_live(first, first + sequence.length() - pending);
  std::uint32_t* positions = plane.layer.positions + head * plane.layer.positions_stride;
  for_each_page_run(sequence.row_pages().data(), 0, sequence.segment_rows(),
                    [&](std::uint32_t row, std::int64_t count) {
                      if (plane.layer.stored.base != nullptr) {
                        plane.layer.fetch(head, row, count,
                                          visitor.fills_parts() ? Access::kWrite : Access::kRead);
                        visit_rows(plane.layer.stored, head, row, count, visitor);
                      }
                      visitor.visit(bytes_of(positions + row, count));
                      visitor.end_block();
                    });
  if (plane.dense) return;
  for (int i = 0; i < sequence.num_segments(); ++i) {
    const SegmentView& segment = sequence.segment(i);
    for (int b = 0; b < segment.num_blocks; ++b) {
      visit_block(plane.index, head, sequence.blocks_of(segment)[b], visitor);
    }
    const IndexStore& index = plane.index;
    visitor.visit(bytes_of(index.record_profile(head, segment.record), index.head_dim));
    visitor.visit(bytes_of(index.record_value_sum(head, segment.record), index.value_dim));
    visitor.visit(bytes_of(plane.index.record_used(head, segment.record), 1));
    visitor.end_block();
  }
}

void check_parts(const SavedPlane& plane, const Sequence& sequence) {
  for (int i = 0; i < sequence.num_segments(); ++i) {
    const SegmentView& segment = sequence.segment(i);
    if (!has_positions(plane, sequence, segment)) {
      fail<FormatError>("read: positions of segment {} are none, expected each token once", i);
    }
    if (!plane.dense && !has_offsets(plane, sequence, segment)) {
      fail<FormatError>("read: clusters of segment {} are none, expected all of its rows", i);
    }
  }
}

}  // namespace clusterkv::cpu
