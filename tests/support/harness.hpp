// SPDX-License-Identifier: Apache-2.0
//
// A cache or selector with a workspace, driven with plain vectors of floats.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "clusterkv/clusterkv.hpp"

namespace clusterkv::testing {

ModelShape small_model(int num_layers = 1, int num_q_heads = 4, int num_kv_heads = 2,
                       int head_dim = 64);

/// Small clusters and windows, sparse everywhere, f32 rows.
CacheConfig small_config(const ModelShape& model);

struct AlignedDelete {
  void operator()(std::byte* data) const { operator delete[](data, std::align_val_t{64}); }
};
using AlignedBytes = std::unique_ptr<std::byte[], AlignedDelete>;
AlignedBytes aligned_bytes(std::size_t bytes);

struct Output {
  std::vector<float> out;  ///< [query row, q_head, head_dim]
  std::vector<float> lse;  ///< [query row, q_head]
  bool operator==(const Output&) const = default;
};

TensorView view3(const std::vector<float>& data, std::int64_t rows, std::int64_t heads,
                 std::int64_t dim);
AttentionOut make_out(Output& output, std::int64_t rows, std::int64_t heads, std::int64_t dim);

/// A Selection's lists, copied: [row][head] of (cluster, rows).
struct Choice {
  struct Entry {
    std::int32_t cluster;
    std::int32_t rows;
    bool operator==(const Entry&) const = default;
  };
  std::vector<std::vector<std::vector<Entry>>> lists;
  bool operator==(const Choice&) const = default;
};
Choice copy_choice(const Selection& selection);

template <class Cache>
class Harness {
 public:
  Harness(const CacheConfig& config, const PlanLimits& limits, const Resources& resources = {})
      : cache(config, resources),
        limits_(limits),
        bytes_(Cache::memory_needs(config, Backend::kCpu, limits).workspace_bytes),
        memory_(aligned_bytes(bytes_)) {}

  /// plan() for the first step, update() afterwards.
  void begin(const std::vector<StepRow>& rows) {
    if (plan.num_rows() == 0) {
      plan = cache.plan(rows, limits_, workspace());
    } else {
      cache.update(plan, rows);
    }
  }
  Workspace workspace() { return {memory_.get(), bytes_, nullptr, 0}; }

  void append(int layer, const std::vector<float>& key, const std::vector<float>& value,
              Stream stream = {}) {
    cache.append(layer, plan, kv_view(key), kv_view(value), stream);
  }
  Output attend(int layer, const std::vector<float>& query, Stream stream = {}) {
    const ModelShape& m = cache.config().model;
    Output output;
    const AttentionOut out = make_out(output, plan.num_query_tokens(), m.num_q_heads, m.head_dim);
    cache.attend(layer, plan, {query_view(query), out}, stream);
    return output;
  }
  TensorView kv_view(const std::vector<float>& data) const {
    const ModelShape& m = cache.config().model;
    return view3(data, plan.num_new_tokens(), m.num_kv_heads, m.head_dim);
  }
  TensorView query_view(const std::vector<float>& data) const {
    const ModelShape& m = cache.config().model;
    return view3(data, plan.num_query_tokens(), m.num_q_heads, m.head_dim);
  }
  /// Positions of all lists of a selection, [row][head].
  std::vector<std::vector<std::vector<std::int32_t>>> positions(int layer,
                                                                const Selection& selection) {
    const std::int64_t rows = selection.cluster_ids.shape[0];
    const std::int64_t heads = selection.cluster_ids.shape[1];
    const std::int64_t room = cache.config().max_tokens;
    std::vector<std::int32_t> ids(static_cast<std::size_t>(rows * heads * room));
    std::vector<std::int32_t> counts(static_cast<std::size_t>(rows * heads));
    cache.token_ids(layer, plan, selection,
                    contiguous_view(ids.data(), DType::kI32, {rows, heads, room}),
                    contiguous_view(counts.data(), DType::kI32, {rows, heads}));
    std::vector<std::vector<std::vector<std::int32_t>>> result;
    for (std::int64_t row = 0; row < rows; ++row) {
      result.emplace_back();
      for (std::int64_t head = 0; head < heads; ++head) {
        const auto list = row * heads + head;
        const auto first = ids.begin() + list * room;
        result.back().emplace_back(first, first + counts[static_cast<std::size_t>(list)]);
      }
    }
    return result;
  }

  Cache cache;
  DecodePlan plan;

 private:
  PlanLimits limits_;
  std::size_t bytes_;
  AlignedBytes memory_;
};

}  // namespace clusterkv::testing
