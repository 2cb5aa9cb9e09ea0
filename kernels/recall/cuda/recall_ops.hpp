// SPDX-License-Identifier: Apache-2.0
//
// Stage 4 of 5, recall, on a device: a whole plan a launch. Pointers inside the parameters are device
// addresses; rows of a host store are mapped pinned memory. The contracts are those of
// recall/recall.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "clusterkv/stats.hpp"
#include "kernels/common/cuda/backend.hpp"
#include "kernels/recall/recall.hpp"
#include "kernels/recall/rules.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

// ------------------------------------------------------------------------------- append rows
/// A run of new tokens of one sequence.
struct AppendJob {
  std::int64_t first_token;  ///< of the tensors
  std::int64_t first_row;    ///< logical live row of the first token
  const std::uint32_t* pages;
  int num_tokens;
};

/// The CPU's append_rows() of all jobs and KV heads. `params` gives tensors and store; its run is not
/// read. Rows are f16 or bf16.
void append_rows(const recall::AppendParams& params, const AppendJob* jobs, int num_jobs,
                 int max_tokens, void* stream);

// --------------------------------------------------------------------------------- read rows
/// Neighbouring rows of a store, the same for all KV heads, and which of their tokens are asked for.
struct RowRun {
  std::uint32_t first_row;
  int num_rows;
  const std::uint32_t* positions;  ///< [kv_head, store row]; null: tokens follow each other
  std::int64_t positions_stride;
  std::int64_t first_token;  ///< without positions
  std::int64_t begin, end;   ///< tokens asked for; `begin` goes to row 0 of the tensors
};
void read_rows(const recall::ReadParams& params, const RowRun& run, int num_kv_heads, void* stream);

// --------------------------------------------------------------------------------- move rows
/// The first rows of page `from`, to begin page `to` as well.
struct PageRows {
  std::uint32_t from;
  std::uint32_t to;
  int num_rows;
};
/// In planes [0, num_planes) of a store, and of its token positions unless they are null.
void copy_page(const RowStore& store, std::uint32_t* positions, std::int64_t positions_stride,
               const PageRows& rows, int num_planes, void* stream);

/// The first tokens of a segment of the row store, to live rows in token order.
struct RestoreParams {
  RowStore stored;
  RowStore live;
  const std::uint32_t* positions;  ///< [plane, store row]
  std::int64_t positions_stride;
  const std::uint32_t* row_pages;   ///< device memory, of the segment's sequence
  const std::uint32_t* live_pages;  ///< device memory; token first_token is logical row 0
  std::int64_t first_row;           ///< of the segment
  int num_rows;                     ///< of the segment
  std::int64_t first_token;         ///< of the segment
  std::int64_t num_tokens;          ///< to be restored
};
void restore_rows(const RestoreParams& params, int num_planes, void* stream);

// ------------------------------------------------------------------------------ recall quads
/// The slot pools of one layer, a plane a KV head. The state of each slot, as SlotState of rules.hpp.
struct SlotPools {
  std::uint32_t* directory;   ///< [kv_head, num_quads]: slot, or kNoSlot
  std::uint32_t* owner;       ///< [kv_head, num_slots]: quad, or kNoQuad
  std::uint32_t* stamp;       ///< [kv_head, num_slots]
  std::uint32_t* referenced;  ///< [kv_head, num_slots]: 0 or 1
  std::int32_t* hand;         ///< [kv_head]
  std::uint32_t* full_in;     ///< [kv_head]: the plan that found no slot
  std::byte* slots;           ///< [kv_head, num_slots, kQuadRows rows of the store's row_bytes]
  std::size_t head_stride;    ///< bytes from plane to plane of `slots`
  std::int64_t num_quads;
  int num_slots;  ///< below 2^31
};

/// What one KV head's recall did.
struct RecallCounts {
  std::int32_t hits;
  std::int32_t misses;
  std::int32_t in_place;
  std::int32_t left_clusters;  ///< that left their lists, and their rows
  std::int32_t left_rows;
};

/// Quads that hold other rows from now on.
struct QuadRange {
  std::uint32_t first;
  std::uint32_t count;
};
/// `pools` are those of the first of `num_planes` planes. `ranges` is a device array.
void drop_quads(const SlotPools& pools, int num_planes, const QuadRange* ranges, int num_ranges,
                void* stream);

struct RecallParams {
  SlotPools pools;
  RowStore stored;
  SelectionLists lists;
  const std::uint32_t* retain_from;  ///< [num_rows]
  recall::QuadCopy* copies;          ///< scratch [kv_head, num_rows, lists of a head, capacity]
  RecallCounts* counts;              ///< [kv_head]
  int num_rows;
  int num_kv_heads;
  const std::uint32_t*
      plan_number;             ///< of the running step, on the device: a captured launch reads it
  StepStats* stats = nullptr;  ///< [2] step and total, if wanted: hits and misses are added
  const SequenceView* rows = nullptr;    ///< [num_rows], with a limit
  int max_transfers = recall::kNoLimit;  ///< of each row that has a tail: see recall/rules.hpp
};

/// Slots for all selected quads, and their copies. Same directory, slots, lists and counts as the CPU's
/// recall (src/recall/recall_stage.hpp).
void recall_quads(const RecallParams& params, void* stream);

}  // namespace clusterkv::CLUSTERKV_DEVICE
