// SPDX-License-Identifier: Apache-2.0
//
// What stages hand on to each other: plain views of buffers that src/ owns (docs/layouts.md).
//
// A sequence's tokens, in order: sinks, stored tokens (in segments), pending tokens. Logical row r
// of the stored tokens lies at row  pages[r / kPageRows] * kPageRows + r % kPageRows  of a store;
// the numbers are the same for all layers and KV heads, only the plane differs. Inside a segment
// rows are in cluster order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "clusterkv/config.hpp"
#include "kernels/common/host_device.hpp"
#include "kernels/common/tuning.hpp"

namespace clusterkv {

/// Row of a store that holds logical row `row` of a page table.
CLUSTERKV_HD inline std::uint32_t paged_row(const std::uint32_t* pages, std::int64_t row) {
  return pages[row / kPageRows] * static_cast<std::uint32_t>(kPageRows) +
         static_cast<std::uint32_t>(row % kPageRows);
}

/// An immutable clustered run of tokens.
struct SegmentView {
  std::uint32_t record;      ///< where its profile and value sum lie
  std::int32_t first_block;  ///< of the sequence
  std::int32_t num_blocks;
  std::int32_t num_rows;
  std::int64_t first_row;  ///< logical row among the stored tokens
};

/// One sequence in one step: the same for all layers and heads.
struct SequenceView {
  const std::uint32_t* row_pages;   ///< [ceil(num_stored / kPageRows)], of the row store
  const std::uint32_t* live_pages;  ///< of the live store: sinks from row 0, pending from
  std::int64_t first_pending;       ///<   logical live row `first_pending`
  const SegmentView* segments;      ///< [num_segments]
  const std::uint32_t* blocks;      ///< [num_blocks] block of the index, by logical block
  std::int32_t num_segments;
  std::int32_t num_blocks;
  std::int32_t num_sinks;
  std::int32_t num_pending;
  std::int64_t num_stored;
  std::int32_t budget_tokens;
  std::int32_t query_row;  ///< first row of the query tensor; -1: does not attend in this step
  bool everything;         ///< attends to all its rows: short, or a plan without a choice
  /// Its last tokens query, with one choice for all of them. They are rows from `query_row` of the
  /// query tensor, in the order [kv_head, token, head of the group].
  std::int32_t num_query_tokens = 1;

  /// Whether clusters are scored: it attends, and has a choice.
  [[nodiscard]] CLUSTERKV_HD bool is_scored() const { return query_row >= 0 && !everything; }

  /// Whether it is of no sequence: one that is in a step has a token.
  [[nodiscard]] CLUSTERKV_HD bool is_padding() const {
    return num_sinks + num_pending + num_stored == 0;
  }

  /// Query heads that share a KV head, those of all query tokens: member m of a group is head
  /// m % (num_q_heads / num_kv_heads) of token m / (num_q_heads / num_kv_heads).
  [[nodiscard]] CLUSTERKV_HD int group(int num_q_heads, int num_kv_heads) const {
    return num_q_heads / num_kv_heads * num_query_tokens;
  }
};

/// Rows of one layer: plane h holds the rows of KV head h.
/// Row: key [head_dim], then value [value_dim], both in `dtype`.
/// The first `num_near` rows, whole pages, may lie in memory of their own, near to attention: they are read
/// there, and never recalled.
struct RowStore {
  std::byte* base = nullptr;    ///< of row num_near
  std::size_t head_stride = 0;  ///< bytes from plane to plane
  std::size_t row_bytes = 0;
  DType dtype = DType::kF32;
  int head_dim = 0;
  int value_dim = 0;
  std::byte* near = nullptr;    ///< of row 0
  std::size_t near_stride = 0;  ///< bytes from plane to plane of `near`
  std::uint32_t num_near = 0;   ///< above 0 there are slots, for rows that are not

  /// From a row to its value, and that value's length.
  CLUSTERKV_HD std::size_t key_bytes() const {
    return static_cast<std::size_t>(head_dim) * size_of(dtype);
  }
  CLUSTERKV_HD std::size_t value_bytes() const {
    return static_cast<std::size_t>(value_dim) * size_of(dtype);
  }
  CLUSTERKV_HD bool is_near(std::uint32_t row) const { return row < num_near; }
  CLUSTERKV_HD std::byte* row(int kv_head, std::uint32_t row) const {
    return is_near(row) ? near + static_cast<std::size_t>(kv_head) * near_stride +
                              static_cast<std::size_t>(row) * row_bytes
                        : far_row(kv_head, row);
  }
  /// row() of one that is not near.
  CLUSTERKV_HD std::byte* far_row(int kv_head, std::uint32_t row) const {
    return base + static_cast<std::size_t>(kv_head) * head_stride +
           static_cast<std::size_t>(row - num_near) * row_bytes;
  }
};

/// The index of one layer. Axes [kv_head, block, cluster in block, …]. Unused clusters of a block
/// have size 0 and come after the used ones. Block = kBlockClusters clusters.
struct IndexStore {
  IndexDType dtype = IndexDType::kInt8;
  int head_dim = 0;
  int value_dim = 0;
  std::int64_t num_blocks = 0;       ///< a plane's length in blocks
  std::int64_t num_records = 0;      ///< a plane's length in segment records
  std::byte* centroids = nullptr;    ///< [kv_head, block, cluster, head_dim] in `dtype`
  std::byte* value_means = nullptr;  ///< [kv_head, block, cluster, value_dim] in `dtype`
  float* centroid_scale = nullptr;   ///< [kv_head, block, cluster]; 1 unless int8
  float* value_scale = nullptr;      ///< [kv_head, block, cluster]; 1 unless int8
  float* spread = nullptr;           ///< [kv_head, block, cluster], sigma^2
  std::uint32_t* offset = nullptr;   ///< [kv_head, block, cluster + 1], logical stored rows
  float* profile = nullptr;          ///< [kv_head, record, head_dim], D_d of the segment
  float* value_sum = nullptr;        ///< [kv_head, record, value_dim], of all rows up to its end
  std::int32_t* used = nullptr;      ///< [kv_head, record], clusters of the segment that have rows

  CLUSTERKV_HD static std::size_t element_bytes(IndexDType dtype) {
    return dtype == IndexDType::kInt8 ? 1 : dtype == IndexDType::kBF16 ? 2 : 4;
  }
  /// Of the centroids, and of the value means of a block.
  CLUSTERKV_HD std::size_t centroid_block_bytes() const {
    return static_cast<std::size_t>(kBlockClusters * head_dim) * element_bytes(dtype);
  }
  CLUSTERKV_HD std::size_t mean_block_bytes() const {
    return static_cast<std::size_t>(kBlockClusters * value_dim) * element_bytes(dtype);
  }
  CLUSTERKV_HD std::int64_t plane_block(int kv_head, std::uint32_t block) const {
    return kv_head * num_blocks + block;
  }
  CLUSTERKV_HD std::byte* block_centroids(int kv_head, std::uint32_t block) const {
    return centroids +
           static_cast<std::size_t>(plane_block(kv_head, block)) * centroid_block_bytes();
  }
  CLUSTERKV_HD std::byte* block_value_means(int kv_head, std::uint32_t block) const {
    return value_means + static_cast<std::size_t>(plane_block(kv_head, block)) * mean_block_bytes();
  }
  CLUSTERKV_HD std::uint32_t* block_offset(int kv_head, std::uint32_t block) const {
    return offset + plane_block(kv_head, block) * (kBlockClusters + 1);
  }
  CLUSTERKV_HD float* record_profile(int kv_head, std::uint32_t record) const {
    return profile + (kv_head * num_records + record) * head_dim;
  }
  CLUSTERKV_HD float* record_value_sum(int kv_head, std::uint32_t record) const {
    return value_sum + (kv_head * num_records + record) * value_dim;
  }
  CLUSTERKV_HD std::int32_t* record_used(int kv_head, std::uint32_t record) const {
    return used + kv_head * num_records + record;
  }
  /// Rows of a cluster of a sequence.
  CLUSTERKV_HD std::int32_t cluster_size(const SequenceView& row, int kv_head, int cluster) const {
    const std::uint32_t* first =
        block_offset(kv_head, row.blocks[cluster / kBlockClusters]) + cluster % kBlockClusters;
    return static_cast<std::int32_t>(first[1] - first[0]);
  }
};

/// Sums of one query head over the clusters of one block; scores t in units of log2.
struct BlockSums {
  float max;       ///< m = max t over clusters that have rows; -inf if there are none
  float sum;       ///< sum of 2^(t - m)
  float mass_sum;  ///< sum of size * 2^(t - m)
  float max_mass;  ///< the largest of them
};

/// Scores of one plan row, for one layer. G = SequenceView::group().
struct RowScores {
  float* e;           ///< [kv_head, block, G, kBlockClusters], 2^(t - m of its block)
  float* z;           ///< as e, in units of log2; null unless per query head
  BlockSums* blocks;  ///< [kv_head, block, G]
};

/// The choice of one step and layer. selection_heads = num_kv_heads; or num_q_heads per query head, with
/// one query token a row.
/// Cluster id = kBlockClusters * logical block + cluster in block.
struct SelectionLists {
  int selection_heads = 0;
  int capacity = 0;                      ///< clusters and rows a list can hold
  std::int32_t* cluster_ids = nullptr;   ///< [row, selection_head, capacity], ascending, -1 padded
  std::int32_t* row_counts = nullptr;    ///< [row, selection_head, capacity], rows of each cluster
  std::int32_t* num_clusters = nullptr;  ///< [row, selection_head]
  std::int32_t* num_rows = nullptr;      ///< [row, selection_head]
  std::uint32_t* row_ids = nullptr;      ///< [row, selection_head, capacity], rows of the store

  CLUSTERKV_HD std::int64_t list(int row, int head) const {
    return static_cast<std::int64_t>(row) * selection_heads + head;
  }
  CLUSTERKV_HD std::int32_t* clusters_of(int row, int head) const {
    return cluster_ids + list(row, head) * capacity;
  }
  CLUSTERKV_HD std::int32_t* counts_of(int row, int head) const {
    return row_counts + list(row, head) * capacity;
  }
  CLUSTERKV_HD std::uint32_t* rows_of(int row, int head) const {
    return row_ids + list(row, head) * capacity;
  }
};

/// Over all clusters of one plan row and query head.
struct HeadTotals {
  float max;   ///< max t, in units of log2; -inf without clusters
  float mass;  ///< sum of size * 2^(t - max)
  float sum;   ///< sum of 2^(t - max)
};

/// Where recalled quads lie. Null directory: rows are read in the store.
struct SlotView {
  const std::uint32_t* directory = nullptr;  ///< [kv_head, quad of the store]: slot, or kNoSlot
  std::int64_t num_quads = 0;                ///< a directory plane's length
  std::byte* slots = nullptr;                ///< [kv_head, slot, kQuadRows rows]
  std::size_t head_stride = 0;               ///< bytes from plane to plane
};
inline constexpr std::uint32_t kNoSlot = 0xffffffffU;

}  // namespace clusterkv
