// SPDX-License-Identifier: Apache-2.0
//
// Stage 3 of 5, select, on a device: whole plans a launch. Pointers inside the parameters are device
// addresses; the contracts are those of select/select.hpp.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/plan_shape.hpp"
#include "kernels/select/select.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// Which instructions multiply int8 centroids. The sums are exact, so the bits are the same.
enum class IntegerMath : std::uint8_t {
  kMma,
  kDp4a,  ///< for devices on which s8 mma turns out slow
};

/// All blocks, KV heads and rows. Same bits as the CPU's score_clusters().
void score_clusters(const select::ScoreParams& params, const PlanShape& shape,
                    IntegerMath math = IntegerMath::kMma);

/// The caller's queries as scoring and attention read them: heads of a plan row in the order of
/// SequenceView.
struct QueryParams {
  TensorView query;          ///< [query rows, num_q_heads, head_dim]
  const SequenceView* rows;  ///< [num_rows]
  int num_kv_heads;
  int query_tokens;  ///< of a row, at most
  float* to;         ///< [query rows, num_q_heads, head_dim]
};
void load_query(const QueryParams& params, const PlanShape& shape);

/// Clusters one block of threads looks at; longer rows are cut into slices.
inline constexpr int kSliceClusters = 4096;

/// Memory of one select_clusters() call. Lists of a row have as many slices as the row's blocks need.
struct SelectScratch {
  const std::int64_t* first_slice;  ///< [num_rows] slices of all lists of the rows before
  std::uint32_t* keys;              ///< [row, selection_head, slice, kSliceClusters]
  std::int32_t* ids;                ///< as keys
  std::int32_t* counts;             ///< [row, selection_head, slice]
  std::uint32_t* arrived;           ///< [num_rows, selection_heads], 0 before and after
};
constexpr int num_slices(int blocks) {
  return (blocks * kBlockClusters + kSliceClusters - 1) / kSliceClusters;
}

/// The choice of the caller, i32 [rows, selection_heads, any] each with any strides, into lists. A list
/// ends where an id is not ascending or does not exist, a count is not in 1 .. the cluster's size, or the
/// rows would be more than a list can hold.
void adopt_lists(const select::SelectParams& params, const TensorView& cluster_ids,
                 const TensorView& row_counts, const PlanShape& shape);

/// Lists as tokens: sinks, chosen rows, pending.
struct TokenLists {
  const SequenceView* rows;
  const std::uint32_t* positions;
  std::int64_t positions_stride;
  SelectionLists lists;  ///< with their row_ids
  int num_kv_heads;
  bool all_rows;  ///< a dense layer
};

/// Token positions of each list, as ClusterKVCache::token_ids() writes them.
struct TokenIdParams {
  TokenLists from;
  TensorView ids;     ///< i32 [rows, selection_heads, any]
  TensorView counts;  ///< i32 [rows, selection_heads]
};
void write_token_ids(const TokenIdParams& params, const PlanShape& shape);

/// Entries of a paged pool, as ClusterSelector::to_paged() writes them. What is beyond `indices` is left
/// out, and a token without a page or with one beyond i32 has entry -1.
struct PagedParams {
  TokenLists from;
  TensorView block_table;  ///< i32 [rows, any]
  int block_tokens;
  TensorView indptr;   ///< i32 [rows * selection_heads + 1]
  TensorView indices;  ///< i32 [any]
};
void write_paged(const PagedParams& params, const PlanShape& shape);

/// Lists with their row ids, and totals. Same choice as the CPU's select_clusters() and the CPU's expand_rows().
void select_clusters(const select::SelectParams& params, const SelectScratch& scratch,
                     const PlanShape& shape);

/// Row ids of lists that came from elsewhere.
void expand_rows(const select::SelectParams& params, const PlanShape& shape);

}  // namespace clusterkv::CLUSTERKV_DEVICE
