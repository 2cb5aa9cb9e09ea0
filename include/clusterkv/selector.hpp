// SPDX-License-Identifier: Apache-2.0
//
// ClusterSelector: the index without the rows. Keys and values stay in the engine's own pool; the
// engine attends to the positions chosen here with its own kernel.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "clusterkv/config.hpp"
#include "clusterkv/kv_cache.hpp"
#include "clusterkv/stats.hpp"
#include "clusterkv/step.hpp"
#include "clusterkv/types.hpp"

namespace clusterkv {
inline namespace v0 {

/// Chooses which positions of a sequence a decode step reads. Protocol, guarantees, thread safety
/// and errors are those of ClusterKVCache, whose choices are the same. Holds the index, and the
/// rows of tokens not yet clustered. `CacheConfig::store` is ignored.
class ClusterSelector {
 public:
  static Support supports(const CacheConfig& config, Backend backend) noexcept;
  static MemoryNeeds memory_needs(const CacheConfig& config, Backend backend,
                                  const PlanLimits& limits);

  explicit ClusterSelector(const CacheConfig& config, const Resources& resources = {});
  ~ClusterSelector();
  ClusterSelector(ClusterSelector&&) noexcept;
  ClusterSelector& operator=(ClusterSelector&&) noexcept;
  ClusterSelector(const ClusterSelector&) = delete;
  ClusterSelector& operator=(const ClusterSelector&) = delete;

  [[nodiscard]] const CacheConfig& config() const noexcept;
  SequenceId add_sequence();

  /// As those of ClusterKVCache, but that no segment can be cut, because its rows are the engine's.
  /// \throws ShapeError  if num_tokens is inside a segment (the message names its ends)
  SequenceId fork(SequenceId parent, std::int64_t num_tokens = -1, Stream stream = {});
  void truncate(SequenceId id, std::int64_t num_tokens, Stream stream = {});

  void remove(SequenceId id, Stream stream = {});
  void save(SequenceId id, const WriteFn& write, Stream stream = {}) const;
  /// \throws FormatError  also if it was saved by a ClusterKVCache; and with or without values, unlike
  ///         the appends before
  SequenceId load(const ReadFn& read, Stream stream = {});
  [[nodiscard]] std::int64_t length(SequenceId id) const;
  DecodePlan plan(std::span<const StepRow> rows, const PlanLimits& limits, Workspace workspace,
                  Stream stream = {});
  void update(DecodePlan& plan, std::span<const StepRow> rows, Stream stream = {});

  /// As ClusterKVCache::append().
  /// \param value  may be empty for all appends of a selector: then there is no tail
  /// \throws ShapeError  if some appends had values and others not
  void append(int layer, const DecodePlan& plan, const TensorView& key, const TensorView& value,
              Stream stream = {});

  Selection select(int layer, const DecodePlan& plan, const TensorView& query, Stream stream = {});

  /// As ClusterKVCache::token_ids(): what the engine attends to.
  void token_ids(int layer, const DecodePlan& plan, const Selection& selection,
                 const TensorView& ids, const TensorView& counts, Stream stream = {}) const;

  /// The rest: the clustered rows that token_ids() does not name, estimated from cluster means.
  /// Merged with the engine's own part by merge_states() it equals ClusterKVCache::attend().
  /// Nothing to estimate: O = 0, LSE = -inf.
  /// \throws ConfigError  if values were not given, or the tail is kNone; and as attend_selected()
  void attend_tail(int layer, const DecodePlan& plan, const Selection& selection,
                   const TensorView& query, const AttentionOut& out, Stream stream = {});

  /// token_ids() as rows of the engine's paged pool, for kernels that take page size 1 with one KV
  /// head: entry = (block_table[row, position / block_tokens] * block_tokens + position %
  /// block_tokens) * num_kv_heads + kv_head.
  /// \param block_table  i32 [plan.num_rows(), max blocks]: the engine's pages of each row
  /// \param indptr       i32 [plan.num_rows() * selection_heads + 1], written
  /// \param indices      i32 [capacity], written: all lists one after the other
  /// \throws ShapeError  if `indices` or a row of `block_table` is too short
  /// \throws ValueError  if a page number is negative, or an entry does not fit i32. CUDA looks at the
  ///         tensors' forms alone: an entry for which others would throw is -1, and what `indices` has no
  ///         room for is left out
  void to_paged(int layer, const DecodePlan& plan, const Selection& selection,
                const TensorView& block_table, int block_tokens, const TensorView& indptr,
                const TensorView& indices, Stream stream = {}) const;

  [[nodiscard]] CacheStats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace v0
}  // namespace clusterkv
