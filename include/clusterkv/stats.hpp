// SPDX-License-Identifier: Apache-2.0
//
// Exact counts of what a cache did.
#pragma once

#include <cstdint>

namespace clusterkv {
inline namespace v0 {

/// Counts over attend() calls. The unit of the token counts is a row read by one selection head: a
/// KV head with HeadGrouping::kShared, a query head with kPerQueryHead. Divide by `selections` for
/// the mean of one head. Quads and copied bytes of prefetch() count too: what it found or brought is
/// neither hit nor miss of the step's attend() any more.
struct StepStats {
  std::int64_t selections = 0;        ///< (query row, layer, selection head) that attended
  std::int64_t dense_selections = 0;  ///< those of them that attended to everything
  std::int64_t attended_tokens = 0;   ///< sink + selected + pending, always
  std::int64_t sink_tokens = 0;
  std::int64_t selected_tokens = 0;
  std::int64_t pending_tokens = 0;
  std::int64_t selected_clusters = 0;
  std::int64_t scored_clusters = 0;
  std::int64_t quad_hits = 0;         ///< quads (4 rows) of the host store found in slots
  std::int64_t quad_misses = 0;       ///< quads copied into the slot pool
  std::int64_t quads_in_place = 0;    ///< quads without a slot, read in the host store
  std::int64_t copied_bytes = 0;      ///< from the host store to the slot pool
  std::int64_t row_bytes = 0;         ///< K and V rows read by attention
  std::int64_t index_bytes = 0;       ///< centroids, scales, spreads and sizes read by selection
  std::int64_t value_mean_bytes = 0;  ///< value means read by the tail
  /// Chosen clusters, and rows of them, that kEstimateMisses left to the tail. They do not count as selected.
  std::int64_t estimated_clusters = 0;
  std::int64_t estimated_tokens = 0;
  std::int64_t estimates = 0;  ///< (query row, layer, query head) with a tail
  double estimated_mass = 0;   ///< sum over them of the softmax mass given to the tail

  [[nodiscard]] std::int64_t bytes_touched() const noexcept {
    return row_bytes + index_bytes + value_mean_bytes;
  }
};

/// All counts since creation, and those of the newest step: of the calls since the last plan() or
/// update().
struct CacheStats {
  StepStats total;
  StepStats step;
  std::int64_t steps = 0;            ///< plan() and update() calls
  std::int64_t appended_tokens = 0;  ///< tokens of all sequences ever, counted once, not per layer
  std::int64_t kmeans_runs = 0;      ///< segments clustered: one per segment, layer and KV head
  std::int64_t kmeans_tokens = 0;    ///< keys clustered by them
  std::int64_t clusters = 0;         ///< non-empty clusters they made
  std::int64_t live_sequences = 0;
  /// Tokens of all sequences, as max_tokens bounds them: those of a segment that forks share count once.
  std::int64_t live_tokens = 0;
  std::int64_t held_bytes = 0;  ///< of the stores, in pages that some sequence holds
  std::int64_t host_bytes = 0;  ///< of those, in the memory that store.host_bytes bounds
};

}  // namespace v0
}  // namespace clusterkv
