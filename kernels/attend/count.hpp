// SPDX-License-Identifier: Apache-2.0
//
// What attention of one selection head counts, the same on both backends.
#pragma once

#include <cstdint>

#include "clusterkv/stats.hpp"
#include "kernels/attend/attend.hpp"

namespace clusterkv::attend {

/// What scoring reads of a cluster beside its centroid: scale, spread, offset. With a scale of 1 the
/// first is read all the same.
inline constexpr std::int64_t kScoredBytes = 12;
/// What the tail reads of a cluster beside its value mean.
inline constexpr std::int64_t kScaleBytes = 4;

/// Adds a plan row and selection head after its attention, with kept and tail_mass written. Rows without
/// a query count nothing, nor does padding.
CLUSTERKV_HD inline void count_list(const MergeParams& params, int row, int head,
                                    StepStats& stats) {
  const AttendParams& p = params.attend;
  const SequenceView& view = p.rows[row];
  if (view.query_row < 0 || view.is_padding()) return;
  const std::int64_t list = p.lists.list(row, head);
  const std::int64_t head_dim = p.live.head_dim;
  const std::int64_t value_dim = p.live.value_dim;
  const int served = num_served(p, row);
  if (!p.all_rows && view.is_scored()) {
    std::int64_t clusters = 0;
    for (int s = 0; s < view.num_segments; ++s) {
      const int kv_head = head / (p.lists.selection_heads / p.num_kv_heads);
      clusters += *p.index.record_used(kv_head, view.segments[s].record);
    }
    const auto element = static_cast<std::int64_t>(IndexStore::element_bytes(p.index.dtype));
    stats.scored_clusters += clusters;
    stats.index_bytes += clusters * (head_dim * element + kScoredBytes);
  }
  ++stats.selections;
  stats.dense_selections += p.all_rows || view.everything ? 1 : 0;
  if (params.rows_part) {
    const std::int64_t attended = num_attended_rows(p, row, head);
    stats.attended_tokens += attended;
    stats.sink_tokens += view.num_sinks;
    stats.selected_tokens += attended - view.num_sinks - view.num_pending;
    stats.pending_tokens += view.num_pending;
    stats.row_bytes +=
        attended * (head_dim + value_dim) * static_cast<std::int64_t>(size_of(p.live.dtype));
  }
  stats.selected_clusters += p.all_rows ? 0 : p.lists.num_clusters[list];
  if (!has_tail(p, row)) return;
  const auto element = static_cast<std::int64_t>(IndexStore::element_bytes(p.index.dtype));
  stats.value_mean_bytes += params.kept[list] * (value_dim * element + kScaleBytes);
  const float* mass = params.tail_mass + std::int64_t{row} * p.num_q_heads * p.query_tokens;
  for (int q_head = head * served; q_head < (head + 1) * served; ++q_head) {
    ++stats.estimates;
    stats.estimated_mass += static_cast<double>(mass[q_head]);
  }
}

}  // namespace clusterkv::attend
