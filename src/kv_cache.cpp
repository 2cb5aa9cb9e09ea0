// SPDX-License-Identifier: Apache-2.0
//
// The pipeline. A step is planned once; then each layer goes
//
//   append : rows ─> live store ─> (when plan() decided so)  cluster ─> index ─> row store
//   attend : score ─> choose ─> recall ─> attend
//   prefetch : score ─> choose ─> recall, ahead of attend
#include "clusterkv/kv_cache.hpp"

#include "src/core.hpp"
#include "src/layer_step.hpp"

namespace clusterkv {
inline namespace v0 {

struct ClusterKVCache::Impl {
  Core core;
};

void ClusterKVCache::append(int layer, const DecodePlan& plan, const TensorView& key,
                            const TensorView& value, Stream stream) {
  impl_->core.append(layer, plan, key, value, stream);
}

void ClusterKVCache::attend(int layer, const DecodePlan& plan, const AttendArgs& args,
                            Stream stream) {
  LayerStep step(impl_->core, layer, plan, args.query, stream);
  step.check_args(args);
  step.score();
  step.choose();
  step.recall();
  step.attend(args.out, args.sink_logits);
}

void ClusterKVCache::prefetch(int layer, const DecodePlan& plan, const TensorView& query_hint,
                              Stream stream) {
  impl_->core.prefetch(layer, plan, query_hint, stream);
}

Selection ClusterKVCache::select(int layer, const DecodePlan& plan, const TensorView& query,
                                 Stream stream) {
  LayerStep step(impl_->core, layer, plan, query, stream);
  step.score();
  step.choose();
  return step.selection();
}

void ClusterKVCache::attend_selected(int layer, const DecodePlan& plan, const Selection& selection,
                                     const AttendArgs& args, Stream stream) {
  LayerStep step(impl_->core, layer, plan, args.query, stream);
  step.check_args(args);
  step.adopt(selection);
  step.score();
  step.recall();
  step.attend(args.out, args.sink_logits);
}

void ClusterKVCache::token_ids(int layer, const DecodePlan& plan, const Selection& selection,
                               const TensorView& ids, const TensorView& counts,
                               Stream stream) const {
  const Core& core = impl_->core;
  core.stages().token_ids(core.layer_call(layer, plan, stream), selection, ids, counts);
}

void ClusterKVCache::read_rows(int layer, SequenceId id, std::int64_t first, std::int64_t last,
                               const TensorView& key, const TensorView& value,
                               Stream stream) const {
  impl_->core.read_rows({layer, first, last}, id, key, value, stream);
}

// --------------------------------------------------------------------- sequences and creation

Support ClusterKVCache::supports(const CacheConfig& config, Backend backend) noexcept {
  return find_support(config, backend, Rows::kKept);
}

MemoryNeeds ClusterKVCache::memory_needs(const CacheConfig& config, Backend backend,
                                         const PlanLimits& limits) {
  return find_needs(config, backend, limits, Rows::kKept);
}

ClusterKVCache::ClusterKVCache(const CacheConfig& config, const Resources& resources)
    : impl_(new Impl{{config, resources, Rows::kKept}}) {}
ClusterKVCache::~ClusterKVCache() = default;
ClusterKVCache::ClusterKVCache(ClusterKVCache&&) noexcept = default;
ClusterKVCache& ClusterKVCache::operator=(ClusterKVCache&&) noexcept = default;

const CacheConfig& ClusterKVCache::config() const noexcept {
  return impl_->core.config();
}

SequenceId ClusterKVCache::add_sequence() {
  return impl_->core.add_sequence();
}

SequenceId ClusterKVCache::fork(SequenceId parent, std::int64_t num_tokens, Stream stream) {
  return impl_->core.fork(parent, num_tokens, stream);
}

void ClusterKVCache::truncate(SequenceId id, std::int64_t num_tokens, Stream stream) {
  impl_->core.truncate(id, num_tokens, stream);
}

void ClusterKVCache::remove(SequenceId id, Stream) {
  impl_->core.remove(id);
}

void ClusterKVCache::save(SequenceId id, const WriteFn& write, Stream stream) const {
  impl_->core.save(id, write, stream);
}

SequenceId ClusterKVCache::load(const ReadFn& read, Stream stream) {
  return impl_->core.load(read, stream);
}

std::int64_t ClusterKVCache::length(SequenceId id) const {
  return impl_->core.find(id).length();
}

DecodePlan ClusterKVCache::plan(std::span<const StepRow> rows, const PlanLimits& limits,
                                Workspace workspace, Stream stream) {
  return impl_->core.plan(rows, limits, workspace, stream);
}

void ClusterKVCache::update(DecodePlan& plan, std::span<const StepRow> rows, Stream stream) {
  impl_->core.update(plan, rows, stream);
}

CacheStats ClusterKVCache::stats() const {
  return impl_->core.read_stats();
}

}  // namespace v0
}  // namespace clusterkv
