// SPDX-License-Identifier: Apache-2.0
//
// What a group keeps of its sequences: a cache with rows of its own, or an
// index over the engine's.
#pragma once

#include <optional>
#include <span>
#include <variant>

#include "clusterkv/kv_cache.hpp"
#include "clusterkv/selector.hpp"

namespace clusterkv::llama_cpp {

/// Calls of ClusterKVCache or ClusterSelector. Where rows are the engine's, no
/// segment can be cut.
class Clusters {
 public:
  Clusters(const CacheConfig& config, bool has_rows, const Resources& resources);
  static std::size_t workspace_bytes(const CacheConfig& config, bool has_rows,
                                     const PlanLimits& limits);

  /// Null where rows are the engine's; selector() is null elsewhere.
  ClusterKVCache* cache() { return std::get_if<ClusterKVCache>(&either_); }
  ClusterSelector* selector() { return std::get_if<ClusterSelector>(&either_); }

  SequenceId add_sequence();
  /// False, and nothing was done, if a segment would be cut.
  bool truncate(SequenceId id, std::int64_t num_tokens);
  /// kNoSequence if a segment would be cut.
  SequenceId fork(SequenceId parent, std::int64_t num_tokens);
  void remove(SequenceId id);

  DecodePlan plan(std::span<const StepRow> rows, const PlanLimits& limits, Workspace workspace);
  void update(DecodePlan& plan, std::span<const StepRow> rows);
  void append(int layer, const DecodePlan& plan, const TensorView& key, const TensorView& value,
              Stream stream);
  [[nodiscard]] CacheStats stats() const;

 private:
  std::variant<ClusterKVCache, ClusterSelector> either_;
};

}  // namespace clusterkv::llama_cpp
