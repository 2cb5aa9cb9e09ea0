// SPDX-License-Identifier: Apache-2.0
//
// What ClusterKVCache and ClusterSelector share on every backend: sequences, the protocol of a step.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "clusterkv/kv_cache.hpp"
#include "src/needs.hpp"
#include "src/plan.hpp"
#include "src/runtime/capacity.hpp"
#include "src/saved.hpp"
#include "src/sequence.hpp"
#include "src/stages.hpp"

namespace clusterkv {

/// As messages show it.
inline long long number(SequenceId id) {
  return static_cast<long long>(id);
}

class Core {
 public:
  Core(const CacheConfig& config, const Resources& resources, Rows rows);
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // ------------------------------------------------------------------------------- sequences
  SequenceId add_sequence();
  SequenceId fork(SequenceId parent, std::int64_t num_tokens, const Stream& stream);
  void truncate(SequenceId id, std::int64_t num_tokens, const Stream& stream);
  void remove(SequenceId id);
  void save(SequenceId id, const WriteFn& write, const Stream& stream) const;
  SequenceId load(const ReadFn& read, const Stream& stream);
  /// \param argument  the caller's name for `id`
  [[nodiscard]] const Sequence& find(SequenceId id, const char* argument = "id") const;

  // ------------------------------------------------------------------------------------ step
  DecodePlan plan(std::span<const StepRow> rows, const PlanLimits& limits,
                  const Workspace& workspace, const Stream& stream);
  void update(DecodePlan& plan, std::span<const StepRow> rows, const Stream& stream);
  void append(int layer, const DecodePlan& plan, const TensorView& key, const TensorView& value,
              const Stream& stream);
  void prefetch(int layer, const DecodePlan& plan, const TensorView& query_hint,
                const Stream& stream);

  /// A layer that was appended in the plan's step.
  /// \throws StepError   if it was not, or the plan is stale, or of another object
  /// \throws ShapeError  if there is no such layer
  [[nodiscard]] LayerCall layer_call(int layer, const DecodePlan& plan, const Stream& stream) const;

  /// ClusterKVCache::read_rows().
  void read_rows(const RowRange& range, SequenceId id, const TensorView& key,
                 const TensorView& value, const Stream& stream) const;

  [[nodiscard]] const CacheConfig& config() const { return config_; }  ///< as given
  [[nodiscard]] const CacheConfig& settings() const { return resolved_; }
  [[nodiscard]] Backend backend() const { return backend_; }
  [[nodiscard]] Stages& stages() const { return *stages_; }
  [[nodiscard]] bool has_values() const { return values_ != Values::kMissing; }
  [[nodiscard]] CacheStats read_stats() const;

 private:
  // Everything that can go wrong in fork() or truncate(), before anything changes.
  void check_room(const char* call) const;
  [[nodiscard]] Cut checked_cut(const Sequence& sequence, std::int64_t num_tokens) const;
  void check_cut_fits(const Sequence& sequence, const Cut& cut, std::int64_t more_tokens) const;
  class TakenPages;
  TakenPages restore(const Sequence& sequence, const Cut& cut, const Stream& stream);
  void check_load_fits(std::int64_t length) const;
  void check_load_fits(const SavedHead& head, std::span<const SegmentSize> segments) const;

  /// Everything that can go wrong in a step, before anything changes.
  void check_rows(std::span<const StepRow> rows, const PlanLimits& limits, bool is_captured);
  void check_not_capturing(const Stream& stream) const;
  void check_row(const StepRow& row, const PlanLimits& limits) const;
  void check_live_pages(std::span<const StepRow> rows) const;
  void check_row_pages(std::span<const StepRow> rows);
  void begin_step(DecodePlan::Impl& plan, std::span<const StepRow> rows, const Stream& stream);
  void check_step(int layer, const DecodePlan& plan) const;
  void check_append(int layer, const DecodePlan& plan, const TensorView& key,
                    const TensorView& value);
  void count_sealing(const Sequence& sequence);
  [[nodiscard]] Sequence* find_or_null(SequenceId id) const;

  CacheConfig config_;
  CacheConfig resolved_;
  Backend backend_;
  Rows rows_;
  runtime::Capacity capacity_;
  PagePools pools_;
  std::unique_ptr<Stages> stages_;
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::int64_t next_id_ = 0;
  std::uint32_t plan_number_ = 0;
  std::uint64_t check_number_ = 0;  ///< of check_rows(); marks the sequences it has seen
  Values values_ = Values::kUnknown;
  CacheStats stats_;             ///< what does not depend on the backend
  std::vector<int> seal_sizes_;  ///< scratch of check_rows()
};

}  // namespace clusterkv
