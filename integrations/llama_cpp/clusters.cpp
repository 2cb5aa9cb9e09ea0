// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/clusters.hpp"

#include <utility>

#include "clusterkv/error.hpp"

namespace clusterkv::llama_cpp {
namespace {

std::variant<ClusterKVCache, ClusterSelector> make_either(const CacheConfig& config, bool has_rows,
                                                          const Resources& resources) {
  if (has_rows) return ClusterKVCache(config, resources);
  return ClusterSelector(config, resources);
}

}  // namespace

Clusters::Clusters(const CacheConfig& config, bool has_rows, const Resources& resources)
    : either_(make_either(config, has_rows, resources)) {}

std::size_t Clusters::workspace_bytes(const CacheConfig& config, bool has_rows,
                                      const PlanLimits& limits) {
  const MemoryNeeds needs = has_rows ? ClusterKVCache::memory_needs(config, Backend::kCpu, limits)
                                     : ClusterSelector::memory_needs(config, Backend::kCpu, limits);
  return needs.workspace_bytes;
}

SequenceId Clusters::add_sequence() {
  return std::visit([](auto& c) { return c.add_sequence(); }, either_);
}

bool Clusters::truncate(SequenceId id, std::int64_t num_tokens) {
  try {
    std::visit([&](auto& c) { c.truncate(id, num_tokens); }, either_);
    return true;
  } catch (const ShapeError&) {
    if (cache() != nullptr) throw;
    return false;
  }
}

SequenceId Clusters::fork(SequenceId parent, std::int64_t num_tokens) {
  try {
    return std::visit([&](auto& c) { return c.fork(parent, num_tokens); }, either_);
  } catch (const ShapeError&) {
    if (cache() != nullptr) throw;
    return kNoSequence;
  }
}

void Clusters::remove(SequenceId id) {
  std::visit([&](auto& c) { c.remove(id); }, either_);
}

DecodePlan Clusters::plan(std::span<const StepRow> rows, const PlanLimits& limits,
                          Workspace workspace) {
  return std::visit([&](auto& c) { return c.plan(rows, limits, workspace); }, either_);
}

void Clusters::update(DecodePlan& plan, std::span<const StepRow> rows) {
  std::visit([&](auto& c) { c.update(plan, rows); }, either_);
}

void Clusters::append(int layer, const DecodePlan& plan, const TensorView& key,
                      const TensorView& value, Stream stream) {
  std::visit([&](auto& c) { c.append(layer, plan, key, value, stream); }, either_);
}

CacheStats Clusters::stats() const {
  return std::visit([](const auto& c) { return c.stats(); }, either_);
}

}  // namespace clusterkv::llama_cpp
