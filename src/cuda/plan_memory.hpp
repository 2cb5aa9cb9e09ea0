// SPDX-License-Identifier: Apache-2.0
//
// The caller's workspace of a plan on a device. What changes from step to step, tables of the sequences
// and jobs, is written to pinned memory and copied in one piece; all else stays where it is, so that
// captured launches find it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/common/cuda/runtime.hpp"
#include "kernels/common/cuda/seal_view.hpp"
#include "kernels/recall/cuda/recall_ops.hpp"
#include "kernels/select/cuda/select_ops.hpp"
#include "src/plan.hpp"
#include "src/stages.hpp"
#include "src/step_scratch.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// Arrays in device memory. R = max_rows, S = selection_heads, C = list capacity.
struct ChoiceScratch : StepScratch {
  SelectScratch select;
  recall::QuadCopy* copies;     ///< [kv_head, R * C * lists of a KV head]
  RecallCounts* recall_counts;  ///< [kv_head]
};

struct Scratch : ChoiceScratch {
  SelectionLists unwanted;        ///< the choice that an adopted one takes the place of
  std::uint32_t* attend_arrived;  ///< [R, S]
  ChoiceScratch ahead;            ///< of prefetch(), with limits.prefetch and rows on the host
  std::byte* tables;              ///< tables_bytes()
};

/// What each step writes anew at the same place.
struct FixedTables {
  SequenceView* views;          ///< [R]
  SequenceView* adopted_views;  ///< [R]
  RowScores* scores;            ///< [R]
  RowScores* ahead_scores;      ///< [R], of prefetch()
  std::int64_t* first_slice;    ///< [R]
  std::uint32_t* retain_from;   ///< [R]
  std::uint32_t* plan_number;   ///< [1]
  AppendJob* append_jobs;       ///< [2 R]
};

/// A segment of the running step, as the host needs to know it.
struct SealSize {
  int num_tokens;
  int num_clusters;
};

struct CudaPlan final : PlanMemory {
  CudaPlan(const Event& sealed_event, const Event& prefetched_event)
      : sealed(sealed_event), prefetched(prefetched_event) {}
  /// The host waits until the workspace may serve another plan: until what it holds for streams that the
  /// caller does not know of was read.
  ~CudaPlan() override;

  // Of the cache: the last segment that a step enqueued, and the last prefetch().
  const Event& sealed;
  const Event& prefetched;
  Scratch scratch{};
  FixedTables tables{};  ///< in device memory
  std::byte* staging[2] = {};
  Event copied[2];  ///< staging may be written again
  int turn = 0;
  std::vector<SequenceTables> sequence_tables;  ///< [R] of the step, in device memory
  std::vector<SealView> host_seals;
  const SealView* seals = nullptr;  ///< in device memory: those of decode, then those of prompts
  std::vector<SealSize> seal_sizes;
  int num_decode_seals = 0;
};

inline CudaPlan& memory_of(DecodePlan::Impl& plan) {
  return static_cast<CudaPlan&>(*plan.memory);
}

Scratch carve_scratch(Carver& carver, const CacheConfig& config, const PlanLimits& limits);
FixedTables carve_tables(Carver& carver, const PlanLimits& limits);
/// Of one step, at most.
Size tables_bytes(const CacheConfig& config, const PlanLimits& limits);

/// Writes the tables of a step to pinned memory; pointers in them are those of the copy on the device.
class TableWriter {
 public:
  TableWriter(std::byte* host, std::byte* device, std::size_t used)
      : host_(host), device_(device), used_(used) {}

  template <class T>
  const T* put(std::span<const T> items) {
    used_ = (used_ + alignof(std::max_align_t) - 1) / alignof(std::max_align_t) *
            alignof(std::max_align_t);
    if (!items.empty()) std::memcpy(host_ + used_, items.data(), items.size_bytes());
    const auto* at = reinterpret_cast<const T*>(device_ + used_);
    used_ += items.size_bytes();
    return at;
  }
  [[nodiscard]] std::size_t used() const { return used_; }

 private:
  std::byte* host_;
  std::byte* device_;
  std::size_t used_;
};

}  // namespace clusterkv::CLUSTERKV_DEVICE
