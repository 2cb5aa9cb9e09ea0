// SPDX-License-Identifier: Apache-2.0
//
// The CPU backend: every call returns when its work is done.
#pragma once

#include "src/cpu/read_rows.hpp"
#include "src/cpu/scratch.hpp"
#include "src/cpu/seal.hpp"
#include "src/index/cluster_index.hpp"
#include "src/recall/recall_stage.hpp"
#include "src/recall/row_stores.hpp"
#include "src/saved_parts.hpp"
#include "src/stages.hpp"

namespace clusterkv::cpu {

class CpuStages final : public Stages {
 public:
  CpuStages(const CacheConfig& config, const Resources& resources, Rows rows);
  static MemoryNeeds needs(const CacheConfig& config, const PlanLimits& limits, Rows rows);

  void check_stream(const Stream& stream) const override;
  [[nodiscard]] bool is_capturing(const Stream&) const override { return false; }
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
  void prefetch(const LayerCall&, const TensorView&) override {}  // rows are read by who calls
  void attend(const LayerCall& call, const AttentionOut& out, const TensorView& sink_logits,
              Part part) override;
  [[nodiscard]] Selection selection(const LayerCall& call) const override;

  void prepare_copy(std::uint32_t page, PageUse use) const override;
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
  [[nodiscard]] Executor& executor(const Stream& stream) const;
  [[nodiscard]] RowSource row_source(int layer) const;
  [[nodiscard]] SavedStores saved_stores(Access access) const;
  static const SequenceView* views(const LayerCall& call);
  [[nodiscard]] LayerMemory layer_memory(const LayerCall& call) const;
  void combine_totals(const LayerCall& call) const;
  void count_sealing(const LayerCall& call, const Sequence& sequence);

  CacheConfig config_;
  const ModelShape& model_;
  std::unique_ptr<Executor> own_executor_;
  Executor* executor_;
  index::ClusterIndex index_;
  recall::RowArena live_;      ///< sinks and pending tokens
  recall::StoredRows stored_;  ///< clustered tokens; empty if they stay with the engine
  recall::SlotPools slots_;
  Sealer sealer_;
  StepStats total_;
  StepStats step_;
  std::int64_t clusters_ = 0;
};

}  // namespace clusterkv::cpu
