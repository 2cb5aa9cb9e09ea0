// SPDX-License-Identifier: Apache-2.0
//
// The pipeline without its rows: append clusters and indexes, select chooses, the engine attends,
// attend_tail adds the rest.
#include "clusterkv/selector.hpp"

#include "src/core.hpp"
#include "src/layer_step.hpp"
#include "src/runtime/check.hpp"

namespace clusterkv {
inline namespace v0 {

using runtime::check_tensor;
using runtime::fail;

struct ClusterSelector::Impl {
  Core core;

  void check_target(const PagedTarget& target, std::int64_t num_rows) const {
    const Backend backend = core.backend();
    const std::int64_t lists = num_rows * runtime::capacity_of(core.settings()).selection_heads;
    check_tensor(target.block_table, {"block_table", {num_rows, -1}, {DType::kI32}}, backend);
    check_tensor(target.indptr, {"indptr", {lists + 1}, {DType::kI32}}, backend);
    check_tensor(target.indices, {"indices", {-1}, {DType::kI32}}, backend);
    if (target.block_tokens < 1) {
      fail<ShapeError>("block_tokens: {}, expected >= 1", target.block_tokens);
    }
  }
};

void ClusterSelector::append(int layer, const DecodePlan& plan, const TensorView& key,
                             const TensorView& value, Stream stream) {
  impl_->core.append(layer, plan, key, value, stream);
}

Selection ClusterSelector::select(int layer, const DecodePlan& plan, const TensorView& query,
                                  Stream stream) {
  LayerStep step(impl_->core, layer, plan, query, stream);
  step.score();
  step.choose();
  return step.selection();
}

void ClusterSelector::token_ids(int layer, const DecodePlan& plan, const Selection& selection,
                                const TensorView& ids, const TensorView& counts,
                                Stream stream) const {
  const Core& core = impl_->core;
  core.stages().token_ids(core.layer_call(layer, plan, stream), selection, ids, counts);
}

void ClusterSelector::attend_tail(int layer, const DecodePlan& plan, const Selection& selection,
                                  const TensorView& query, const AttentionOut& out, Stream stream) {
  if (impl_->core.settings().select.tail == Tail::kNone) {
    fail<ConfigError>("select.tail: kNone, expected kMean or kSecondMoment for a tail");
  }
  if (!impl_->core.has_values()) {
    fail<ConfigError>("value: append() was not given values, expected them for a tail");
  }
  LayerStep step(impl_->core, layer, plan, query, stream);
  step.check_out(out);
  step.adopt(selection);
  step.score();
  step.attend(out, {}, Part::kTailOnly);
}

void ClusterSelector::to_paged(int layer, const DecodePlan& plan, const Selection& selection,
                               const TensorView& block_table, int block_tokens,
                               const TensorView& indptr, const TensorView& indices,
                               Stream stream) const {
  const Core& core = impl_->core;
  const LayerCall call = core.layer_call(layer, plan, stream);
  const PagedTarget target{block_table, block_tokens, indptr, indices};
  impl_->check_target(target, plan.num_rows());
  core.stages().to_paged(call, selection, target);
}

// --------------------------------------------------------------------- sequences and creation

Support ClusterSelector::supports(const CacheConfig& config, Backend backend) noexcept {
  return find_support(config, backend, Rows::kElsewhere);
}

MemoryNeeds ClusterSelector::memory_needs(const CacheConfig& config, Backend backend,
                                          const PlanLimits& limits) {
  return find_needs(config, backend, limits, Rows::kElsewhere);
}

ClusterSelector::ClusterSelector(const CacheConfig& config, const Resources& resources)
    : impl_(new Impl{{config, resources, Rows::kElsewhere}}) {}
ClusterSelector::~ClusterSelector() = default;
ClusterSelector::ClusterSelector(ClusterSelector&&) noexcept = default;
ClusterSelector& ClusterSelector::operator=(ClusterSelector&&) noexcept = default;

const CacheConfig& ClusterSelector::config() const noexcept {
  return impl_->core.config();
}

SequenceId ClusterSelector::add_sequence() {
  return impl_->core.add_sequence();
}

SequenceId ClusterSelector::fork(SequenceId parent, std::int64_t num_tokens, Stream stream) {
  return impl_->core.fork(parent, num_tokens, stream);
}

void ClusterSelector::truncate(SequenceId id, std::int64_t num_tokens, Stream stream) {
  impl_->core.truncate(id, num_tokens, stream);
}

void ClusterSelector::remove(SequenceId id, Stream) {
  impl_->core.remove(id);
}

void ClusterSelector::save(SequenceId id, const WriteFn& write, Stream stream) const {
  impl_->core.save(id, write, stream);
}

SequenceId ClusterSelector::load(const ReadFn& read, Stream stream) {
  return impl_->core.load(read, stream);
}

std::int64_t ClusterSelector::length(SequenceId id) const {
  return impl_->core.find(id).length();
}

DecodePlan ClusterSelector::plan(std::span<const StepRow> rows, const PlanLimits& limits,
                                 Workspace workspace, Stream stream) {
  return impl_->core.plan(rows, limits, workspace, stream);
}

void ClusterSelector::update(DecodePlan& plan, std::span<const StepRow> rows, Stream stream) {
  impl_->core.update(plan, rows, stream);
}

CacheStats ClusterSelector::stats() const {
  return impl_->core.read_stats();
}

}  // namespace v0
}  // namespace clusterkv
