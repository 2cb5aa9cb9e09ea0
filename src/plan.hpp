// SPDX-License-Identifier: Apache-2.0
//
// Inside a DecodePlan: the batch of the running step, and the backend's part of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "clusterkv/step.hpp"
#include "kernels/common/views.hpp"
#include "src/sequence.hpp"

namespace clusterkv {

/// One row of the running step.
struct PlanRow {
  Sequence* sequence;  ///< null: padding
  SequenceId id;
  int num_new_tokens;
  int first_new_token;          ///< row of append()'s tensors
  std::int64_t first_position;  ///< of the new tokens in the sequence
  int query_row;                ///< first row of attend()'s tensors; -1: none
  int num_query_tokens;         ///< rows of attend()'s tensors
  Phase phase;
};

/// visit(first_token, first_row, num_tokens) for runs of a row's new tokens that lie together: row of
/// append()'s tensors, logical live row. There are two if they begin among the sinks.
template <class Visit>
void for_each_run(const PlanRow& row, const Visit& visit) {
  const Sequence& s = *row.sequence;
  const std::int64_t end = row.first_position + row.num_new_tokens;
  for (std::int64_t first = row.first_position; first < end;) {
    const std::int64_t last =
        first < s.num_sinks() ? std::min<std::int64_t>(end, s.num_sinks()) : end;
    visit(row.first_new_token + first - row.first_position, s.live_row(first),
          static_cast<int>(last - first));
    first = last;
  }
}

/// Number of the first plan whose quads a row still retains.
inline std::uint32_t retain_from(const StoreConfig& store, const PlanRow& row) {
  const bool retains = store.retention == Retention::kRetainSteps && row.sequence != nullptr;
  return retains ? row.sequence->past_plan(store.retain_steps) : 0;
}

/// What a backend keeps for a plan: the caller's workspace, cut into arrays.
struct PlanMemory {
  virtual ~PlanMemory() = default;
};

inline namespace v0 {

struct DecodePlan::Impl {
  const void* owner = nullptr;  ///< the core that made it
  std::uint32_t number = 0;     ///< of the running step; counts plans and updates of one core
  PlanLimits limits;
  std::unique_ptr<PlanMemory> memory;
  int num_new_tokens = 0;
  int num_query_tokens = 0;
  /// [layer] append() was recorded into a graph, which appends in later steps too.
  std::vector<bool> captured;
  std::vector<PlanRow> rows;
  std::vector<SequenceView> views;          ///< [row]
  std::vector<SequenceView> adopted_views;  ///< [row], for a caller's choice: none takes everything
};

}  // namespace v0
}  // namespace clusterkv
