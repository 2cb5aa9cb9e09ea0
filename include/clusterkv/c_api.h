// SPDX-License-Identifier: Apache-2.0
//
// The library for C11 and for whatever calls C: a function for each method of ClusterKVCache and
// ClusterSelector, whose headers say more. Structs are those of c_types.h and c_step.h.
//
//   ckv_config_standard ─> ckv_cache_create ─> ckv_cache_plan ─> per layer: append ─> attend
//
// Every call returns a ckv_status and fills `error`, unless that is NULL. After any status but CKV_OK
// objects are as before; a tensor for results may have been written in part if a callback failed. No
// exception leaves a call, also none that a callback threw. Nothing is kept per thread: what
// kv_cache.hpp says about threads holds, a plan being part of its cache.
//
// Errors of every call, not named again: CKV_ARGUMENT_ERROR for a NULL where none is allowed or an
// unknown struct_size; CKV_OUT_OF_MEMORY; with a cold_path CKV_FILE_ERROR; CKV_SHAPE_ERROR and
// CKV_DTYPE_ERROR for a tensor of another form. `stream` and `error` may always be NULL, other pointers where it says so.
#pragma once

#include "clusterkv/c_step.h"
#include "clusterkv/c_types.h"

// NOLINTBEGIN(readability-identifier-naming,modernize-*): names and typedefs of C
#ifdef __cplusplus
extern "C" {
#endif

/// The version of the library linked, as "major.minor.patch".
const char* ckv_version(void);

/// The name of a status, as "CKV_SHAPE_ERROR"; never NULL.
const char* ckv_status_name(ckv_status status);

/// CacheConfig::standard() and paper(), without a model: its fields are 0, kv_dtype is CKV_BF16.
ckv_status ckv_config_standard(ckv_config* config, ckv_error* error);
ckv_status ckv_config_paper(ckv_config* config, ckv_error* error);

// ----------------------------------------------------------------------------------- executors

/// make_thread_pool(). CKV_CONFIG_ERROR if num_threads < 0; 0: as many as the machine has.
ckv_status ckv_executor_create_pool(int32_t num_threads, ckv_executor** executor, ckv_error* error);
/// LentThreads. CKV_CONFIG_ERROR if num_threads < 1.
ckv_status ckv_executor_create_lent(int32_t num_threads, ckv_executor** executor, ckv_error* error);
/// CKV_CONFIG_ERROR if concurrency < 1.
ckv_status ckv_executor_create_callbacks(const ckv_executor_callbacks* callbacks,
                                         ckv_executor** executor, ckv_error* error);
/// LentThreads::serve() and release(). CKV_ARGUMENT_ERROR for an executor of another kind.
ckv_status ckv_executor_serve(ckv_executor* executor, int32_t operation, ckv_error* error);
ckv_status ckv_executor_release(ckv_executor* executor, ckv_error* error);
/// After all that use it are gone. NULL: nothing.
ckv_status ckv_executor_destroy(ckv_executor* executor, ckv_error* error);

// --------------------------------------------------------------------------------------- plans

/// Rows of the running step, padding included; rows of append()'s and of attend()'s tensors.
ckv_status ckv_plan_num_rows(const ckv_plan* plan, int32_t* count, ckv_error* error);
ckv_status ckv_plan_num_new_tokens(const ckv_plan* plan, int32_t* count, ckv_error* error);
ckv_status ckv_plan_num_query_tokens(const ckv_plan* plan, int32_t* count, ckv_error* error);
/// Before the cache or selector that made it. NULL: nothing.
ckv_status ckv_plan_destroy(ckv_plan* plan, ckv_error* error);

// --------------------------------------------------------------------------------------- cache

/// \param reason  set to a static string that says why it cannot run, or to NULL if it can
ckv_status ckv_cache_supports(const ckv_config* config, int32_t backend, const char** reason,
                              ckv_error* error);
/// CKV_CONFIG_ERROR, CKV_BACKEND_UNAVAILABLE as ckv_cache_create(); CKV_SHAPE_ERROR for a limit.
ckv_status ckv_cache_memory_needs(const ckv_config* config, int32_t backend,
                                  const ckv_plan_limits* limits, ckv_memory_needs* needs,
                                  ckv_error* error);
/// CKV_CONFIG_ERROR, CKV_BACKEND_UNAVAILABLE. `resources` may be NULL: the CPU, a pool of its own.
ckv_status ckv_cache_create(const ckv_config* config, const ckv_resources* resources,
                            ckv_cache** cache, ckv_error* error);
/// CKV_STEP_ERROR while it has plans. NULL: nothing.
ckv_status ckv_cache_destroy(ckv_cache* cache, ckv_error* error);
/// As it was given; `layers` and `cold_path` are valid as long as the cache.
ckv_status ckv_cache_config(const ckv_cache* cache, ckv_config* config, ckv_error* error);

/// A new sequence of length 0. CKV_CAPACITY_ERROR if max_sequences are live.
ckv_status ckv_cache_add_sequence(ckv_cache* cache, int64_t* sequence, ckv_error* error);
/// The first `num_tokens` tokens (-1: all) as a sequence of its own, which shares memory.
/// CKV_UNKNOWN_SEQUENCE, CKV_SHAPE_ERROR, CKV_STEP_ERROR, CKV_CAPACITY_ERROR.
ckv_status ckv_cache_fork(ckv_cache* cache, int64_t parent, int64_t num_tokens,
                          const ckv_stream* stream, int64_t* sequence, ckv_error* error);
/// Drops all tokens from `num_tokens` on. Errors as ckv_cache_fork().
ckv_status ckv_cache_truncate(ckv_cache* cache, int64_t sequence, int64_t num_tokens,
                              const ckv_stream* stream, ckv_error* error);
/// CKV_UNKNOWN_SEQUENCE.
ckv_status ckv_cache_remove(ckv_cache* cache, int64_t sequence, const ckv_stream* stream,
                            ckv_error* error);
/// CKV_UNKNOWN_SEQUENCE, CKV_STEP_ERROR, CKV_BACKEND_UNAVAILABLE; CKV_CALLBACK_ERROR.
ckv_status ckv_cache_save(const ckv_cache* cache, int64_t sequence, const ckv_writer* writer,
                          const ckv_stream* stream, ckv_error* error);
/// CKV_FORMAT_ERROR, CKV_CAPACITY_ERROR, CKV_BACKEND_UNAVAILABLE; CKV_VALUE_ERROR if the reader read more
/// than it was asked for; CKV_CALLBACK_ERROR.
ckv_status ckv_cache_load(ckv_cache* cache, const ckv_reader* reader, const ckv_stream* stream,
                          int64_t* sequence, ckv_error* error);
/// Tokens planned so far. CKV_UNKNOWN_SEQUENCE.
ckv_status ckv_cache_length(const ckv_cache* cache, int64_t sequence, int64_t* length,
                            ckv_error* error);

/// Begins a step with a new plan. CKV_SHAPE_ERROR, CKV_UNKNOWN_SEQUENCE, CKV_STEP_ERROR,
/// CKV_CAPACITY_ERROR.
ckv_status ckv_cache_plan(ckv_cache* cache, const ckv_plan_args* args, const ckv_stream* stream,
                          ckv_plan** plan, ckv_error* error);
/// The next step in the same plan; allocates nothing. As ckv_cache_plan().
ckv_status ckv_cache_update(ckv_cache* cache, ckv_plan* plan, const ckv_step_row* rows,
                            size_t num_rows, const ckv_stream* stream, ckv_error* error);
/// \param key    [new tokens, num_kv_heads, head_dim], f32, f16 or bf16, any strides
/// \param value  the same, of value_dim
/// CKV_STEP_ERROR; CKV_VALUE_ERROR with check_finite.
ckv_status ckv_cache_append(ckv_cache* cache, const ckv_layer_call* call, const ckv_tensor* key,
                            const ckv_tensor* value, ckv_error* error);
/// CKV_STEP_ERROR.
ckv_status ckv_cache_attend(ckv_cache* cache, const ckv_layer_call* call,
                            const ckv_attend_args* args, ckv_error* error);
/// Brings what attend() of a later layer will read; needs ckv_plan_limits::prefetch. CKV_STEP_ERROR.
/// \param query_hint  [query rows, num_q_heads, head_dim], f32, f16 or bf16
ckv_status ckv_cache_prefetch(ckv_cache* cache, const ckv_layer_call* call,
                              const ckv_tensor* query_hint, ckv_error* error);
/// \param query  [query rows, num_q_heads, head_dim], f32, f16 or bf16
/// CKV_STEP_ERROR.
ckv_status ckv_cache_select(ckv_cache* cache, const ckv_layer_call* call, const ckv_tensor* query,
                            ckv_selection* selection, ckv_error* error);
/// CKV_STEP_ERROR, CKV_VALUE_ERROR, CKV_CAPACITY_ERROR.
ckv_status ckv_cache_attend_selected(ckv_cache* cache, const ckv_layer_call* call,
                                     const ckv_selection* selection, const ckv_attend_args* args,
                                     ckv_error* error);
/// \param ids     i32 [rows, selection_heads, capacity], -1 padded on return
/// \param counts  i32 [rows, selection_heads]
/// CKV_STEP_ERROR, CKV_VALUE_ERROR.
ckv_status ckv_cache_token_ids(const ckv_cache* cache, const ckv_layer_call* call,
                               const ckv_selection* selection, const ckv_tensor* ids,
                               const ckv_tensor* counts, ckv_error* error);
/// \param key    [last - first, num_kv_heads, head_dim], f32, f16 or bf16; last stride 1
/// \param value  the same, of value_dim
/// CKV_UNKNOWN_SEQUENCE, CKV_STEP_ERROR.
ckv_status ckv_cache_read_rows(const ckv_cache* cache, const ckv_row_range* range,
                               const ckv_tensor* key, const ckv_tensor* value,
                               const ckv_stream* stream, ckv_error* error);
ckv_status ckv_cache_stats(const ckv_cache* cache, ckv_stats* stats, ckv_error* error);

// ------------------------------------------------------------------------------------ selector

// As the calls of a cache, but for what ClusterSelector says.
ckv_status ckv_selector_supports(const ckv_config* config, int32_t backend, const char** reason,
                                 ckv_error* error);
ckv_status ckv_selector_memory_needs(const ckv_config* config, int32_t backend,
                                     const ckv_plan_limits* limits, ckv_memory_needs* needs,
                                     ckv_error* error);
ckv_status ckv_selector_create(const ckv_config* config, const ckv_resources* resources,
                               ckv_selector** selector, ckv_error* error);
ckv_status ckv_selector_destroy(ckv_selector* selector, ckv_error* error);
ckv_status ckv_selector_config(const ckv_selector* selector, ckv_config* config, ckv_error* error);
ckv_status ckv_selector_add_sequence(ckv_selector* selector, int64_t* sequence, ckv_error* error);
ckv_status ckv_selector_fork(ckv_selector* selector, int64_t parent, int64_t num_tokens,
                             const ckv_stream* stream, int64_t* sequence, ckv_error* error);
ckv_status ckv_selector_truncate(ckv_selector* selector, int64_t sequence, int64_t num_tokens,
                                 const ckv_stream* stream, ckv_error* error);
ckv_status ckv_selector_remove(ckv_selector* selector, int64_t sequence, const ckv_stream* stream,
                               ckv_error* error);
ckv_status ckv_selector_save(const ckv_selector* selector, int64_t sequence,
                             const ckv_writer* writer, const ckv_stream* stream, ckv_error* error);
ckv_status ckv_selector_load(ckv_selector* selector, const ckv_reader* reader,
                             const ckv_stream* stream, int64_t* sequence, ckv_error* error);
ckv_status ckv_selector_length(const ckv_selector* selector, int64_t sequence, int64_t* length,
                               ckv_error* error);
ckv_status ckv_selector_plan(ckv_selector* selector, const ckv_plan_args* args,
                             const ckv_stream* stream, ckv_plan** plan, ckv_error* error);
ckv_status ckv_selector_update(ckv_selector* selector, ckv_plan* plan, const ckv_step_row* rows,
                               size_t num_rows, const ckv_stream* stream, ckv_error* error);
/// \param value  may be NULL in all appends of a selector: then there is no tail
ckv_status ckv_selector_append(ckv_selector* selector, const ckv_layer_call* call,
                               const ckv_tensor* key, const ckv_tensor* value, ckv_error* error);
ckv_status ckv_selector_select(ckv_selector* selector, const ckv_layer_call* call,
                               const ckv_tensor* query, ckv_selection* selection, ckv_error* error);
ckv_status ckv_selector_token_ids(const ckv_selector* selector, const ckv_layer_call* call,
                                  const ckv_selection* selection, const ckv_tensor* ids,
                                  const ckv_tensor* counts, ckv_error* error);
/// \param args  without sink_logits
/// CKV_CONFIG_ERROR if there is no tail; and as ckv_cache_attend_selected().
ckv_status ckv_selector_attend_tail(ckv_selector* selector, const ckv_layer_call* call,
                                    const ckv_selection* selection, const ckv_attend_args* args,
                                    ckv_error* error);
/// CKV_VALUE_ERROR for a page number.
ckv_status ckv_selector_to_paged(const ckv_selector* selector, const ckv_layer_call* call,
                                 const ckv_selection* selection, const ckv_paged_target* target,
                                 ckv_error* error);
ckv_status ckv_selector_stats(const ckv_selector* selector, ckv_stats* stats, ckv_error* error);

// ----------------------------------------------------------------------------------- attention

/// dense_decode(). CKV_VALUE_ERROR.
ckv_status ckv_dense_decode(const ckv_decode_args* args, const ckv_attention_out* out,
                            const ckv_stream* stream, ckv_error* error);
/// sparse_decode().
/// \param token_ids  i32 [num_rows, num_kv_heads or num_q_heads, capacity]
/// \param counts     i32 [num_rows, as token_ids]
/// CKV_VALUE_ERROR.
ckv_status ckv_sparse_decode(const ckv_decode_args* args, const ckv_tensor* token_ids,
                             const ckv_tensor* counts, const ckv_attention_out* out,
                             const ckv_stream* stream, ckv_error* error);
/// merge_states(). Takes memory for the list of parts.
/// \param parts  num_parts of them, at least one; each with its LSE
ckv_status ckv_merge_states(const ckv_attention_out* parts, size_t num_parts,
                            const ckv_attention_out* total, const ckv_stream* stream,
                            ckv_error* error);

#ifdef __cplusplus
}
#endif
// NOLINTEND(readability-identifier-naming,modernize-*)
