// SPDX-License-Identifier: Apache-2.0
//
// One decode or prefill step: which sequences take part, where scratch memory lies, what comes out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "clusterkv/types.hpp"

namespace clusterkv {
inline namespace v0 {

enum class Phase : std::uint8_t {
  kDecode,       ///< new tokens were generated; windows of earlier steps' tokens are clustered
  kPrefill,      ///< a chunk of a prompt; more follows. Full segments are clustered
  kPrefillLast,  ///< the last chunk: also clusters the rest, if it fills a window
};

/// What one sequence does in a step. A row with `id == kNoSequence` is padding: its rows of the
/// tensors are ignored on input, and give O = 0 and LSE = -inf.
struct StepRow {
  SequenceId id = kNoSequence;
  int num_new_tokens = 1;  ///< tokens appended in this step; >= 1
  /// The last of the new tokens attend, each to what is not later than itself, over one choice that all
  /// of them make together: 0 .. 16, at most num_new_tokens, and at most 1 with kPerQueryHead.
  int num_query_tokens = 1;
  Phase phase = Phase::kDecode;
  int budget_tokens = 0;  ///< 0: that of the config
};

/// Upper bounds over all the steps one plan is used for.
struct PlanLimits {
  int max_rows = 1;           ///< rows of a step
  int max_new_tokens = 1;     ///< new tokens of all rows together
  int max_budget_tokens = 0;  ///< largest StepRow::budget_tokens; 0: that of the config
  int max_query_tokens = 1;   ///< largest StepRow::num_query_tokens; 1 .. 16
  /// Lengths of all rows together after a step, tokens that forks share in each of them; 0: max_tokens of
  /// the config, which is enough where no forks are in a step.
  std::int64_t max_context_tokens = 0;
  /// ClusterKVCache::prefetch() may be called. CUDA with kHost or kHybrid: scratch for a second choice.
  bool prefetch = false;
};

/// Bytes that a cache and one plan will take, known before anything is made. The stores are
/// reserved in full; host memory costs real pages only as tokens arrive.
struct MemoryNeeds {
  /// Index, sinks, pending tokens, slots; rows of dense layers, and those that Residency leaves on the device.
  /// With the CPU backend in host memory.
  std::size_t device_bytes = 0;
  std::size_t pinned_bytes = 0;  ///< host store of the CUDA backend
  std::size_t host_bytes = 0;    ///< host store of the CPU backend, unless in a file
  std::size_t file_bytes = 0;    ///< file of store.cold_path
  std::size_t workspace_bytes = 0;
  std::size_t workspace_pinned_bytes = 0;
};

/// Scratch memory of a plan: the caller's, of the sizes in MemoryNeeds, aligned to 64 bytes. Must
/// outlive the plan. A plan's calls never use more. CUDA: `data` is device memory, `pinned` pinned.
struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
  void* pinned = nullptr;
  std::size_t pinned_bytes = 0;
};

/// Whether a configuration can run, and if not, why. `reason` is a static string, never null.
struct Support {
  bool ok = true;
  const char* reason = "";
};

/// One attention result per query row and query head.
struct AttentionOut {
  TensorView out;       ///< [query rows, num_q_heads, value_dim], f32, f16 or bf16; last stride 1
  TensorView lse = {};  ///< f32 [query rows, num_q_heads], natural log of the denominator; or empty
};

struct AttendArgs {
  TensorView query;  ///< [query rows, num_q_heads, head_dim], f32, f16 or bf16, any strides
  AttentionOut out;
  /// Learned sinks, f32 [num_q_heads], or empty: a logit each, as it is, that takes its share of the softmax
  /// and has no value. LSE counts it. Rows that attend to nothing have none.
  TensorView sink_logits = {};
};

/// The clusters each row attends to, and how many of their first rows in stored order. Rows of a
/// list are ascending by id and end with -1. Views of the plan's workspace: valid until the plan's
/// next select() or attend().
struct Selection {
  TensorView cluster_ids;  ///< i32 [rows, selection_heads, capacity], -1 padded
  TensorView row_counts;   ///< i32 [rows, selection_heads, capacity], > 0 where there is a cluster
};

/// One step's batch: made by plan(), used by all layers, renewed by update(). Move-only. Must not
/// outlive the cache or selector that made it.
class DecodePlan {
 public:
  DecodePlan() noexcept;
  ~DecodePlan();
  DecodePlan(DecodePlan&&) noexcept;
  DecodePlan& operator=(DecodePlan&&) noexcept;
  DecodePlan(const DecodePlan&) = delete;
  DecodePlan& operator=(const DecodePlan&) = delete;

  [[nodiscard]] int num_rows() const noexcept;          ///< padding included
  [[nodiscard]] int num_new_tokens() const noexcept;    ///< rows of append()'s tensors
  [[nodiscard]] int num_query_tokens() const noexcept;  ///< rows of attend()'s tensors

  struct Impl;                 ///< private to the library
  std::unique_ptr<Impl> impl;  ///< private to the library
};

}  // namespace v0
}  // namespace clusterkv
