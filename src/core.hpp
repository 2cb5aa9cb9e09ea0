// SPDX-License-Identifier: Apache-2.0
//
// What ClusterKVCache and ClusterSelector share: stores, sequences, the protocol of a step.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "clusterkv/kv_cache.hpp"
#include "src/index/cluster_index.hpp"
#include "src/needs.hpp"
#include "src/plan.hpp"
#include "src/recall/recall_stage.hpp"
#include "src/recall/row_stores.hpp"
#include "src/runtime/capacity.hpp"
#include "src/seal.hpp"
#include "src/sequence.hpp"

namespace clusterkv {

class Core {
 public:
  Core(const CacheConfig& config, const Resources& resources, Rows rows);
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // ------------------------------------------------------------------------------- sequences
  SequenceId add_sequence();
  void remove(SequenceId id);
  [[nodiscard]] const Sequence& find(SequenceId id) const;

  // ------------------------------------------------------------------------------------ step
  DecodePlan plan(std::span<const StepRow> rows, const PlanLimits& limits,
                  const Workspace& workspace);
  void update(DecodePlan& plan, std::span<const StepRow> rows);
  void append(int layer, const DecodePlan& plan, const TensorView& key, const TensorView& value,
              const Stream& stream);

  /// \throws StepError   if the plan is stale, or of another object
  /// \throws ShapeError  if there is no such layer
  void check_step(int layer, const DecodePlan& plan) const;
  /// check_step(), and the layer was appended in the plan's step.
  void check_appended(int layer, const DecodePlan& plan) const;

  // ---------------------------------------------------------------------------------- stores
  [[nodiscard]] const CacheConfig& config() const { return config_; }  ///< as given
  [[nodiscard]] const CacheConfig& settings() const { return resolved_; }
  [[nodiscard]] bool is_dense(int layer) const;
  [[nodiscard]] const index::ClusterIndex& index() const { return index_; }
  [[nodiscard]] RowStore live(int layer) const { return live_.layer(layer); }
  [[nodiscard]] RowStore stored(int layer) const { return stored_.layer(layer); }
  [[nodiscard]] recall::SlotPools& slots() { return slots_; }
  [[nodiscard]] bool has_values() const { return values_ != Values::kMissing; }
  [[nodiscard]] Executor& executor(const Stream& stream);
  [[nodiscard]] CacheStats& stats() { return stats_; }
  [[nodiscard]] CacheStats read_stats() const;

 private:
  enum class Values : std::uint8_t { kUnknown, kGiven, kMissing };

  /// Everything that can go wrong in a step, before anything changes.
  void check_rows(std::span<const StepRow> rows, const PlanLimits& limits);
  void check_row(const StepRow& row, const PlanLimits& limits) const;
  void begin_step(DecodePlan::Impl& plan, std::span<const StepRow> rows);
  void check_append(int layer, const DecodePlan& plan, const TensorView& key,
                    const TensorView& value);
  void drop_shared_quads(const Sequence& sequence, int layer);
  void count_sealing(const Sequence& sequence, int layer);
  [[nodiscard]] Sequence* find_or_null(SequenceId id) const;

  CacheConfig config_;
  CacheConfig resolved_;
  Rows rows_;
  runtime::Capacity capacity_;
  std::unique_ptr<Executor> own_executor_;
  Executor* executor_;
  PagePools pools_;
  index::ClusterIndex index_;
  recall::RowArena live_;    ///< sinks and pending tokens
  recall::RowArena stored_;  ///< clustered tokens; empty if they stay with the engine
  recall::SlotPools slots_;
  Sealer sealer_;
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::int64_t next_id_ = 0;
  std::int64_t live_tokens_ = 0;
  std::uint32_t plan_number_ = 0;
  std::uint64_t check_number_ = 0;  ///< of check_rows(); marks the sequences it has seen
  Values values_ = Values::kUnknown;
  CacheStats stats_;
  std::vector<int> seal_sizes_;  ///< scratch of check_rows()
};

}  // namespace clusterkv
