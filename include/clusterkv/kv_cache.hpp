// SPDX-License-Identifier: Apache-2.0
//
// ClusterKVCache: the KV cache of an attention layer stack that reads a few per cent of its rows.
//
//   plan ──> per layer: append ──> attend            once a step, for a batch of sequences
//            attend = select ─> recall ─> attention  (docs/pipeline.md)
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "clusterkv/config.hpp"
#include "clusterkv/executor.hpp"
#include "clusterkv/memory.hpp"
#include "clusterkv/saved.hpp"
#include "clusterkv/stats.hpp"
#include "clusterkv/step.hpp"
#include "clusterkv/types.hpp"

namespace clusterkv {
inline namespace v0 {

/// What a cache or selector runs on. All pointers are borrowed and must outlive it.
struct Resources {
  Backend backend = Backend::kCpu;
  Executor* executor = nullptr;      ///< null: a pool of our own, as many threads as cores
  MemoryResource* memory = nullptr;  ///< null: default_memory_resource(); CUDA's own with kCuda
};

/// The keys and values of many sequences, for all layers of one model on one device.
///
/// Protocol of a step: plan() or update() names the rows; then, for each layer in any order,
/// append() and after it attend() (or select() and attend_selected()). Lengths advance in plan().
/// The next plan() of a sequence requires that every layer was appended.
///
/// Guarantees: the same bits for any batch composition, any cut of a prompt into chunks, any
/// residency and any number of threads (not with kEstimateMisses, see StoreConfig). A call that throws leaves
/// the cache as it was. No call keeps a pointer into its arguments but plan(), which keeps the workspace.
///
/// With store.cold_path every call that reads or writes clustered rows may throw FileError. It can be made
/// again; slots may hold fewer rows then.
///
/// CUDA: tensors lie in device or pinned memory. Calls enqueue on their stream and return; all calls of a
/// cache take the same stream, or streams that the caller orders. append(), prefetch() and attend() may be captured into
/// a graph, which serves the later steps of its plan: pad rows to the captured number, keep the tensors
/// where they are, and call update() outside. docs/recall.md says who waits for whom.
///
/// Thread safety: const calls may run beside each other; any other call, also attend() of another layer,
/// needs the caller's order. Different caches are independent, if their executors are: a pool serves one
/// call at a time.
class ClusterKVCache {
 public:
  /// Whether the configuration can run on the backend. Never throws; takes no memory.
  static Support supports(const CacheConfig& config, Backend backend) noexcept;

  /// Bytes that the constructor, and a plan with `limits`, will take.
  /// \throws ConfigError, BackendUnavailable  as the constructor
  static MemoryNeeds memory_needs(const CacheConfig& config, Backend backend,
                                  const PlanLimits& limits);

  /// Reserves all stores for max_sequences and max_tokens.
  /// \throws ConfigError         if a field is out of range (the message names it)
  /// \throws BackendUnavailable  if the backend was not built
  /// \throws OutOfMemory         if `resources.memory`, or the disk of store.cold_path, has not enough
  /// \throws FileError           if no file can be made in store.cold_path
  explicit ClusterKVCache(const CacheConfig& config, const Resources& resources = {});
  ~ClusterKVCache();
  ClusterKVCache(ClusterKVCache&&) noexcept;
  ClusterKVCache& operator=(ClusterKVCache&&) noexcept;
  ClusterKVCache(const ClusterKVCache&) = delete;
  ClusterKVCache& operator=(const ClusterKVCache&) = delete;

  [[nodiscard]] const CacheConfig& config() const noexcept;

  /// A new sequence of length 0.
  /// \throws CapacityError  if max_sequences are live
  SequenceId add_sequence();

  /// A new sequence of the first `num_tokens` tokens of another. It shares the parent's memory: whole
  /// segments for good, sinks and pending tokens until one of the two writes to their page. Neither
  /// sees what the other does; either may be removed first. What the parent's last step sealed is
  /// used at once. A fork that cuts a segment has the segment's first tokens as pending, as after
  /// truncate(). The parent's plans stay valid.
  ///
  /// \param num_tokens  0 .. length(parent); -1: all
  /// \throws UnknownSequence  if `parent` is not live
  /// \throws ShapeError       if num_tokens is out of range
  /// \throws StepError        if it reaches into a last step of which a layer was left out
  /// \throws CapacityError    if max_sequences are live; if max_tokens has no room for its sinks and
  ///         pending tokens, which count once more, while segments shared do not; or if
  ///         store.live_tokens has none for those of a cut segment
  /// Cost: a copy of the page tables; as truncate() if a segment is cut. The first step of a fork, or
  ///       of its parent, copies up to two pages of 256 tokens, in all layers.
  SequenceId fork(SequenceId parent, std::int64_t num_tokens = -1, Stream stream = {});

  /// Drops all tokens from `num_tokens` on, of a draft that was refused or a step that was cancelled.
  /// Plans that hold the sequence become stale; its next step needs no more layers of the last one.
  ///
  /// What remains answers as if the later tokens had never come, with the same bits where the
  /// segments are the same:
  /// - Segments that end at or before `num_tokens` stay. A segment that is cut is gone, and its first
  ///   tokens are pending again: attended exactly, and clustered anew once enough are pending.
  /// - With `num_tokens` at the length before the last step, or less, that step has not been: what it
  ///   sealed is pending again. Otherwise what it sealed is used at once.
  ///
  /// \param num_tokens  0 .. length(id)
  /// \throws UnknownSequence  if `id` is not live
  /// \throws ShapeError       if num_tokens is out of range
  /// \throws StepError        if it reaches into a last step of which a layer was left out
  /// \throws CapacityError    if max_tokens or store.live_tokens has no room for the tokens of a cut
  ///         segment; the former only if a fork shares it
  /// Cost: host work of O(pages); if a segment is cut, one pass over it in all layers, for which the host
  ///       waits.
  void truncate(SequenceId id, std::int64_t num_tokens, Stream stream = {});

  /// Ends a sequence; memory that no fork shares serves others at once. Plans that hold it become
  /// stale.
  /// \throws UnknownSequence  if `id` is not live
  void remove(SequenceId id, Stream stream = {});

  /// Writes a sequence as bytes, a few pages at a time: rows, index and lengths, each block with a
  /// checksum. Little-endian; docs/lifecycle.md has the layout.
  /// \throws UnknownSequence     if `id` is not live
  /// \throws ValueError          if `write` is empty
  /// \throws StepError           if a layer of its last step was left out
  /// \throws BackendUnavailable  if the stream is another backend's
  /// \throws OutOfMemory         with CUDA: 4 MiB of pinned memory, for the time of the call
  /// Cost: one pass over its rows and index in all layers, on the caller's thread; with CUDA the host waits for
  ///       the stream.
  void save(SequenceId id, const WriteFn& write, Stream stream = {}) const;

  /// A new sequence from what save() wrote, here or in another process. It answers with the bits of a
  /// fork of the one saved. The cache must have the same shape of model, dtype and layers, the same
  /// `cluster` and `select.dense_layers`; all else may differ. Reads no byte more than was saved.
  /// \throws FormatError         if the bytes end early, are damaged, of another version or of a cache
  ///         with other settings (the message names the first)
  /// \throws CapacityError       if max_sequences are live, or max_tokens, store.live_tokens or
  ///         store.host_bytes has no room
  /// \throws ValueError          if `read` is empty or says it read more than it was asked for
  /// \throws BackendUnavailable, OutOfMemory  as save()
  /// Cost: as save(). Takes no memory but pages, for which all sizes are checked before.
  SequenceId load(const ReadFn& read, Stream stream = {});

  /// Tokens planned so far.
  /// \throws UnknownSequence  if `id` is not live
  [[nodiscard]] std::int64_t length(SequenceId id) const;

  /// Begins a step: checks it, decides what will be clustered in it, advances the lengths.
  ///
  /// Decides sealing from lengths and phases alone. Prefill: each `segment_tokens` pending tokens
  /// become a segment. kPrefillLast: so does the rest, from `window_tokens` on. Decode: each
  /// `window_tokens` pending tokens of earlier steps. append() does the clustering; it is used from
  /// the sequence's next plan on, until then its tokens are pending and attended exactly.
  ///
  /// \param rows       1 .. limits.max_rows of them; a sequence at most once
  /// \param limits     bounds over all later update() calls with this plan
  /// \param workspace  of memory_needs(config, backend, limits).workspace_bytes; kept by the plan
  /// \throws ShapeError       if rows are too many or too few, repeated, or a count is out of range
  /// \throws UnknownSequence  if an id is not live
  /// \throws StepError        if a layer of a sequence's last step was left out
  /// \throws CapacityError    if max_tokens, store.live_tokens, store.host_bytes, a limit or the workspace is
  ///         too small
  /// Cost: host work only, O(rows).
  DecodePlan plan(std::span<const StepRow> rows, const PlanLimits& limits, Workspace workspace,
                  Stream stream = {});

  /// The next step in the same plan: same limits, same workspace, no allocation.
  /// \throws as plan(); StepError if `plan` was not made by this object
  void update(DecodePlan& plan, std::span<const StepRow> rows, Stream stream = {});

  /// Stores the step's keys and values of one layer, and clusters what plan() decided to seal.
  ///
  /// \param key    [plan.num_new_tokens(), num_kv_heads, head_dim], post-RoPE; f32, f16 or bf16;
  ///               any strides; rows of the step one after the other
  /// \param value  the same, of value_dim; its dtype may differ
  /// \throws ShapeError, DTypeError  if a tensor is not of that form
  /// \throws StepError               if the layer was appended already, or the plan is stale
  /// \throws ValueError              with check_finite, if an element is NaN or infinite
  /// Cost: one pass over the new rows; a sealed segment of n tokens costs kmeans_iterations *
  ///       n * n / tokens_per_cluster * head_dim multiply-adds per KV head.
  void append(int layer, const DecodePlan& plan, const TensorView& key, const TensorView& value,
              Stream stream = {});

  /// Attention of the step's queries over their sequences: select, recall, attend.
  ///
  /// \param args  query and out of plan.num_query_tokens() rows; all of out is written
  /// \throws ShapeError, DTypeError  if a tensor is not of the form given in step.hpp
  /// \throws StepError               before append() of the layer, or if the plan is stale
  /// Cost: reads the index (about 7 % of K and V with the standard preset), the selected rows, and
  ///       the value means that matter.
  /// Source: arXiv 2412.03213; tail and shared choice: ours (docs/paper-map.md).
  void attend(int layer, const DecodePlan& plan, const AttendArgs& args, Stream stream = {});

  /// Begins to bring what attend() of a later layer will read from the host store, beside what the stream
  /// is given from here on: call it before attend() of the layer that runs now. Never changes an answer,
  /// whatever the hint; but with kEstimateMisses, what it brought is not estimated. What the later choice
  /// lacks is brought as without it; what the hint chose in vain takes slots as any choice, and time of
  /// the link. The CPU backend, dense layers and Residency::kDevice have
  /// nothing to bring: the call checks its arguments.
  ///
  /// The layer need not be appended yet. After its attend() there is nothing to gain.
  ///
  /// CUDA graphs: captured if attend() of its layer, which must follow, is in the same capture; else
  /// neither may be.
  ///
  /// \param query_hint  [plan.num_query_tokens(), num_q_heads, head_dim], as close to the layer's queries as
  ///                    can be known: those of the layer before, say, or of the step before
  /// \throws ShapeError, DTypeError  if the tensor is not of that form, or there is no such layer
  /// \throws StepError               if the plan is stale, of another object, or was made without
  ///         limits.prefetch; if a graph has one of prefetch() and attend() but not the other
  /// Cost: as select(), and the copies; on a stream of its own.
  void prefetch(int layer, const DecodePlan& plan, const TensorView& query_hint,
                Stream stream = {});

  /// The choice attend() would make. Rows that attend to everything list all their clusters, but
  /// those of a dense layer, which has none, list nothing.
  /// \param query  [plan.num_query_tokens(), num_q_heads, head_dim]
  /// \throws as attend()
  Selection select(int layer, const DecodePlan& plan, const TensorView& query, Stream stream = {});

  /// attend() over a choice made before, by this or another layer, or by the caller. Clusters not
  /// in it go to the tail.
  /// \throws as attend(); ValueError if ids are not ascending or do not exist, or a count is not in
  ///         1 .. the cluster's size; CapacityError if a list has more rows than the larger of the
  ///         plan's budget and what dense_threshold makes of it. CUDA looks at the tensors' forms alone:
  ///         a list ends before an entry for which the others would throw
  void attend_selected(int layer, const DecodePlan& plan, const Selection& selection,
                       const AttendArgs& args, Stream stream = {});

  /// The positions a selection stands for: sinks, selected rows in stored order, pending.
  /// \param ids     i32 [plan.num_rows(), selection_heads, capacity], -1 padded on return
  /// \param counts  i32 [plan.num_rows(), selection_heads]
  /// \throws ShapeError  if capacity is too small (the message says how much is needed), and as
  ///         attend_selected()
  void token_ids(int layer, const DecodePlan& plan, const Selection& selection,
                 const TensorView& ids, const TensorView& counts, Stream stream = {}) const;

  /// Rows [first, last) of a sequence in token order, as stored: for an engine's own prefill.
  /// \param key    [last - first, num_kv_heads, head_dim], f32, f16 or bf16; last stride 1
  /// \param value  the same, of value_dim; its dtype may differ
  /// \throws UnknownSequence, ShapeError, DTypeError; StepError before append() of the layer
  void read_rows(int layer, SequenceId id, std::int64_t first, std::int64_t last,
                 const TensorView& key, const TensorView& value, Stream stream = {}) const;

  /// CUDA: waits until the device has done all it was given.
  [[nodiscard]] CacheStats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace v0
}  // namespace clusterkv
