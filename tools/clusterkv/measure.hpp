// SPDX-License-Identifier: Apache-2.0
//
// Compares one layer of a cache with full attention, step by step.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <string>
#include <vector>

#include "clusterkv/kv_cache.hpp"
#include "tools/clusterkv/metrics.hpp"
#include "tools/clusterkv/replay.hpp"

namespace clusterkv::tool {

class LayerMeasure {
 public:
  /// `executor` is for full attention, which is computed on the CPU.
  LayerMeasure(const Trace& trace, const TraceLayer& layer, const CacheConfig& config,
               Backend backend, Executor& executor);

  /// Rows [first, last) as the cache holds them: full attention is computed over the same bits.
  void take_rows(const ClusterKVCache& cache, int position, SequenceId id, int first, int last);

  /// Attends with one recorded query, in the cache and in full.
  void step(ClusterKVCache& cache, int position, const DecodePlan& plan, int query);

  [[nodiscard]] Metrics metrics(const std::string& preset, int budget) const;
  [[nodiscard]] std::vector<RetainPoint> retain() const;

 private:
  void attend(ClusterKVCache& cache, int position, const DecodePlan& plan, int query);
  void attend_in_full(int query);
  void compare_outputs();
  void read_choice(ClusterKVCache& cache, int position, const DecodePlan& plan, int query);
  void compare_choice(int query);
  /// A contiguous view that the cache's backend reads and writes.
  [[nodiscard]] TensorView shared(const void* data, DType dtype,
                                  std::initializer_list<std::int64_t> shape) const;

  const Trace& trace_;
  const TraceLayer& layer_;
  CacheConfig config_;
  Stream stream_;  ///< of the cache
  Executor& executor_;
  int selection_heads_;
  int num_rows_ = 0;             ///< tokens taken
  SharedVector<std::byte> key_;  ///< [token, kv_head, head_dim], in the rows' dtype
  SharedVector<std::byte> value_;
  SharedVector<float> wide_key_;   ///< the same keys
  std::vector<float> wide_query_;  ///< [q_head, head_dim]
  SharedVector<float> out_, lse_;
  std::vector<float> full_, full_lse_;
  SharedVector<std::int32_t> ids_, counts_;
  std::vector<double> errors_, masses_, recalls_, attended_, bytes_, step_us_, dense_us_;
  std::vector<std::vector<HitRate>> hit_rates_;  ///< [R, selection_head]
};

}  // namespace clusterkv::tool
