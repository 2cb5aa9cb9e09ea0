// SPDX-License-Identifier: Apache-2.0
//
// Structs of the C API for steps and counts: what step.hpp, selector.hpp and stats.hpp have.
#pragma once

#include "clusterkv/c_types.h"

// NOLINTBEGIN(readability-identifier-naming,modernize-*): names and typedefs of C
#ifdef __cplusplus
extern "C" {
#endif

// --------------------------------------------------------------------------------------- steps

enum { CKV_DECODE = 0, CKV_PREFILL = 1, CKV_PREFILL_LAST = 2 };  // Phase
#define CKV_NO_SEQUENCE ((int64_t)-1)

/// StepRow. No field has a default here: num_new_tokens and num_query_tokens of a decode step are 1.
typedef struct ckv_step_row {
  size_t struct_size;
  int64_t sequence;  ///< CKV_NO_SEQUENCE: padding
  int32_t num_new_tokens;
  int32_t num_query_tokens;
  int32_t phase;
  int32_t budget_tokens;  ///< 0: that of the config
} ckv_step_row;

/// PlanLimits. A max_query_tokens of 0 counts as 1.
typedef struct ckv_plan_limits {
  size_t struct_size;
  int32_t max_rows;
  int32_t max_new_tokens;
  int32_t max_budget_tokens;  ///< 0: that of the config
  int32_t max_query_tokens;
  int64_t max_context_tokens;  ///< 0: max_tokens of the config
  int32_t prefetch;            ///< not 0: ckv_cache_prefetch() may be called
  int32_t reserved;            ///< 0
} ckv_plan_limits;

/// MemoryNeeds
typedef struct ckv_memory_needs {
  size_t struct_size;
  size_t device_bytes;
  size_t pinned_bytes;
  size_t host_bytes;
  size_t file_bytes;
  size_t workspace_bytes;
  size_t workspace_pinned_bytes;
} ckv_memory_needs;

/// Workspace: scratch memory of a plan, which must outlive it; aligned to 64 bytes.
typedef struct ckv_workspace {
  size_t struct_size;
  void* data;
  size_t bytes;
  void* pinned;
  size_t pinned_bytes;
} ckv_workspace;

/// The first step of a plan, and what bounds all of them.
typedef struct ckv_plan_args {
  size_t struct_size;
  const ckv_step_row* rows;
  size_t num_rows;
  const ckv_plan_limits* limits;
  const ckv_workspace* workspace;
} ckv_plan_args;

/// Which layer of which step a call is for.
typedef struct ckv_layer_call {
  size_t struct_size;
  ckv_plan* plan;
  const ckv_stream* stream;  ///< may be NULL
  int32_t layer;
  int32_t reserved;  ///< 0
} ckv_layer_call;

/// AttentionOut
typedef struct ckv_attention_out {
  size_t struct_size;
  const ckv_tensor* out;  ///< [query rows, num_q_heads, value_dim], f32, f16 or bf16; last stride 1
  const ckv_tensor* lse;  ///< f32 [query rows, num_q_heads], or NULL
} ckv_attention_out;

/// AttendArgs
typedef struct ckv_attend_args {
  size_t struct_size;
  const ckv_tensor* query;  ///< [query rows, num_q_heads, head_dim], f32, f16 or bf16
  const ckv_attention_out* out;
  const ckv_tensor* sink_logits;  ///< f32 [num_q_heads], or NULL
} ckv_attend_args;

/// Selection. Filled by select(), its shapes are the plan's and its data the workspace's: valid until
/// the plan's next select() or attend(). A caller's own choice has the same form.
typedef struct ckv_selection {
  size_t struct_size;
  ckv_tensor cluster_ids;  ///< i32 [rows, selection_heads, capacity], -1 padded
  ckv_tensor row_counts;   ///< the same
} ckv_selection;

/// Where ckv_selector_to_paged() writes.
typedef struct ckv_paged_target {
  size_t struct_size;
  const ckv_tensor* block_table;  ///< i32 [rows, max blocks]
  const ckv_tensor* indptr;       ///< i32 [rows * selection_heads + 1], written
  const ckv_tensor* indices;      ///< i32 [capacity], written
  int32_t block_tokens;
  int32_t reserved;  ///< 0
} ckv_paged_target;

/// Tokens [first, last) of a layer of a sequence.
typedef struct ckv_row_range {
  size_t struct_size;
  int64_t sequence;
  int64_t first;
  int64_t last;
  int32_t layer;
  int32_t reserved;  ///< 0
} ckv_row_range;

/// DecodeArgs
typedef struct ckv_decode_args {
  size_t struct_size;
  const ckv_tensor* query;    ///< [num_rows, num_q_heads, head_dim], f32, f16 or bf16
  const ckv_tensor* key;      ///< [num_rows, num_tokens, num_kv_heads, head_dim]; last stride 1
  const ckv_tensor* value;    ///< as key, of value_dim
  const ckv_tensor* lengths;  ///< i32 [num_rows], or NULL: all are num_tokens
  float softmax_scale;        ///< 0: 1 / sqrt(head_dim)
  float logit_softcap;        ///< 0: none
} ckv_decode_args;

// --------------------------------------------------------------------------------------- stats

/// StepStats
typedef struct ckv_step_stats {
  size_t struct_size;
  int64_t selections;
  int64_t dense_selections;
  int64_t attended_tokens;
  int64_t sink_tokens;
  int64_t selected_tokens;
  int64_t pending_tokens;
  int64_t selected_clusters;
  int64_t scored_clusters;
  int64_t quad_hits;
  int64_t quad_misses;
  int64_t quads_in_place;
  int64_t copied_bytes;
  int64_t row_bytes;
  int64_t index_bytes;
  int64_t value_mean_bytes;
  int64_t estimated_clusters;
  int64_t estimated_tokens;
  int64_t estimates;
  double estimated_mass;
} ckv_step_stats;

/// CacheStats
typedef struct ckv_stats {
  size_t struct_size;
  ckv_step_stats* total;  ///< set by the caller, filled unless NULL
  ckv_step_stats* step;   ///< set by the caller, filled unless NULL
  int64_t steps;
  int64_t appended_tokens;
  int64_t kmeans_runs;
  int64_t kmeans_tokens;
  int64_t clusters;
  int64_t live_sequences;
  int64_t live_tokens;
  int64_t held_bytes;
  int64_t host_bytes;
} ckv_stats;

#ifdef __cplusplus
}
#endif
// NOLINTEND(readability-identifier-naming,modernize-*)
