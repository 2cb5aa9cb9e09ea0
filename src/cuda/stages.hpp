// SPDX-License-Identifier: Apache-2.0
//
// The CUDA backend. Calls enqueue on the caller's stream and return. Segments are clustered on a stream
// of our own beside it; the step that first reads them waits for that.
#pragma once

#include "kernels/common/cuda/runtime.hpp"
#include "kernels/select/cuda/select_ops.hpp"
#include "src/cuda/plan_memory.hpp"
#include "src/cuda/prefetches.hpp"
#include "src/cuda/seal.hpp"
#include "src/cuda/slot_memory.hpp"
#include "src/index/cluster_index.hpp"
#include "src/recall/stored_rows.hpp"
#include "src/saved_parts.hpp"
#include "src/stages.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

class CudaStages final : public Stages {
 public:
  CudaStages(const CacheConfig& config, const Resources& resources, Rows rows);
  ~CudaStages() override;
  static MemoryNeeds needs(const CacheConfig& config, const PlanLimits& limits, Rows rows);

  void check_stream(const Stream& stream) const override;
  [[nodiscard]] bool is_capturing(const Stream& stream) const override;
  void open_plan(DecodePlan::Impl& plan, const Workspace& workspace, const Stream& stream) override;
  void reserve_seal(int num_tokens, int num_clusters) override;
  void begin_step(DecodePlan::Impl& plan, std::span<const StaleQuads> stale,
                  const Stream& stream) override;
  bool all_finite(const TensorView& tensor, std::int64_t first, std::int64_t count) override;
  void append(const LayerCall& call, const TensorView& key, const TensorView& value) override;

  void take_query(const LayerCall& call, const TensorView& query) override;
  void score(const LayerCall& call) override;
  void choose(const LayerCall& call) override;
  void adopt(const LayerCall& call, const Selection& selection) override;
  void recall(const LayerCall& call) override;
  void prefetch(const LayerCall& call, const TensorView& query) override;
  void attend(const LayerCall& call, const AttentionOut& out, const TensorView& sink_logits,
              Part part) override;
  [[nodiscard]] Selection selection(const LayerCall& call) const override;

  void prepare_copy(std::uint32_t, PageUse) const override {}
  void copy_pages(std::span<const PageCopy> rows, std::span<const PageCopy> live,
                  const Stream& stream) override;
  void restore_rows(const RestoredRows& rows, const Stream& stream) override;
  void visit_parts(const Sequence& sequence, PartVisitor& visitor, const Stream& stream) override;
  void check_parts(const Sequence& sequence, const Stream& stream) const override;

  void token_ids(const LayerCall& call, const Selection& selection, const TensorView& ids,
                 const TensorView& counts) const override;
  void to_paged(const LayerCall& call, const Selection& selection,
                const PagedTarget& target) const override;
  void read_rows(const RowRange& range, const Sequence& sequence, const TensorView& key,
                 const TensorView& value, const Stream& stream) const override;
  void add_counts(CacheStats& stats) const override;

 private:
  /// Counters in device memory.
  struct Counts {
    StepStats step;
    StepStats total;
    std::int64_t clusters;
  };

  /// visit(first, count) for dense layers, and for the others: planes of a kind follow each other.
  template <class Visit>
  void for_each_layer_kind(const Visit& visit) const {
    if (num_dense_ > 0) visit(0, num_dense_);
    if (num_dense_ < model_.num_layers) visit(num_dense_, model_.num_layers - num_dense_);
  }
  void write_tables(DecodePlan::Impl& plan, std::span<const StaleQuads> stale, void* stream);
  static void write_seals(const DecodePlan::Impl& plan, CudaPlan& memory, TableWriter& writer);
  void seal(const SealTarget& target, const SealView* seals, std::span<const SealSize> sizes);
  [[nodiscard]] SealTarget seal_target(bool dense, int first_layer, int num_layers) const;
  [[nodiscard]] PlanShape shape_of(const LayerCall& call) const;
  static PlanShape rows_of(const LayerCall& call);
  [[nodiscard]] int selection_heads() const { return capacity_.selection_heads; }
  void check_selection(const LayerCall& call, const Selection& selection) const;
  /// A selection, which need not be the plan's own.
  [[nodiscard]] TokenLists token_lists(const LayerCall& call, const Selection& selection) const;
  static const SequenceView* views(const LayerCall& call);
  static ChoiceScratch& scratch_of(const LayerCall& call);
  [[nodiscard]] SavedStores saved_stores() const;
  [[nodiscard]] LayerMemory layer_memory(const LayerCall& call) const;
  [[nodiscard]] Counts* counts() const { return reinterpret_cast<Counts*>(counts_.data()); }

  CacheConfig config_;
  const ModelShape& model_;
  MemoryResource& memory_;
  runtime::Capacity capacity_;
  int num_dense_;  ///< dense layers come first
  index::ClusterIndex index_;
  recall::RowArena live_;      ///< sinks and pending tokens
  recall::StoredRows stored_;  ///< clustered tokens, in device or pinned memory
  SlotMemory slots_;
  Sealer sealer_;
  runtime::Buffer moved_pages_;
  runtime::Buffer counts_;
  SideStream side_;
  Event appended_;  ///< what a segment is made from is there
  Event sealed_;    ///< the last segment enqueued on `side_`
  Prefetches prefetches_;
};

}  // namespace clusterkv::CLUSTERKV_DEVICE
