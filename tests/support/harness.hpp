// SPDX-License-Identifier: Apache-2.0
//
// A cache or selector with a workspace, driven with plain vectors of floats.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <new>
#include <vector>

#include "clusterkv/clusterkv.hpp"

namespace clusterkv::testing {

/// value_dim as a cache takes it.
inline int value_dim_of(const ModelShape& model) {
  return model.value_dim == 0 ? model.head_dim : model.value_dim;
}

ModelShape small_model(int num_layers = 1, int num_q_heads = 4, int num_kv_heads = 2,
                       int head_dim = 64);

/// dtype of the rows in small_model(): f32, unless a program runs on a backend that has none of it.
inline DType small_model_dtype = DType::kF32;
/// Whether the program has the CUDA backend in the place of the CPU's.
inline bool runs_on_cuda() {
  return small_model_dtype != DType::kF32;
}
/// How far attention of small_model() may be from that over the rows as they were given, relative.
inline double small_model_precision() {
  return runs_on_cuda() ? 2e-3 : 1e-5;
}

/// Small clusters and windows, sparse everywhere.
CacheConfig small_config(const ModelShape& model);

struct AlignedDelete {
  void operator()(std::byte* data) const { operator delete[](data, std::align_val_t{64}); }
};
using AlignedBytes = std::unique_ptr<std::byte[], AlignedDelete>;
AlignedBytes aligned_bytes(std::size_t bytes);

struct Output {
  std::vector<float> out;  ///< [query row, q_head, value_dim]
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

/// A device to run on: nothing is ready before `wait` was called with the stream.
struct AsyncStream {
  Stream stream;
  void (*wait)(void* handle) = nullptr;
};

template <class Cache>
class Harness {
 public:
  Harness(const CacheConfig& config, const PlanLimits& limits, const Resources& resources = {},
          const AsyncStream& async = {})
      : cache(config, resources),
        limits_(limits),
        needs_(Cache::memory_needs(config, resources.backend, limits)),
        resource_(resources.memory == nullptr ? default_memory_resource() : *resources.memory),
        async_(async),
        on_device_(resources.backend == Backend::kCuda),
        memory_(take(needs_.workspace_bytes, on_device_ ? Device::kCuda : Device::kHost)),
        pinned_(take(needs_.workspace_pinned_bytes, Device::kPinned)) {}
  ~Harness() {
    plan = {};
    wait();
    resource_.deallocate(memory_, needs_.workspace_bytes, 64,
                         {on_device_ ? Device::kCuda : Device::kHost});
    if (pinned_ == nullptr) return;
    resource_.deallocate(pinned_, needs_.workspace_pinned_bytes, 64, {Device::kPinned});
  }
  Harness(const Harness&) = delete;
  Harness& operator=(const Harness&) = delete;

  /// plan() for the first step, update() afterwards.
  void begin(const std::vector<StepRow>& rows) {
    if (plan.num_rows() == 0) {
      plan = cache.plan(rows, limits_, workspace(), async_.stream);
    } else {
      cache.update(plan, rows, async_.stream);
    }
  }
  /// The next begin() makes a plan with other limits, for which the workspace is large enough.
  void renew(const PlanLimits& limits) {
    plan = {};
    limits_ = limits;
  }
  Workspace workspace() {
    return {memory_, needs_.workspace_bytes, pinned_, needs_.workspace_pinned_bytes};
  }
  /// Until results are there.
  void wait() {
    if (async_.wait != nullptr) async_.wait(async_.stream.handle);
    kept_.clear();
  }

  void append(int layer, const std::vector<float>& key, const std::vector<float>& value,
              Stream stream = {}) {
    cache.append(layer, plan, kv_view(keep(key)), value_view(keep(value)), stream_or_own(stream));
  }
  Output attend(int layer, const std::vector<float>& query, Stream stream = {}) {
    const ModelShape& m = cache.config().model;
    Output output;
    AttentionOut out = make_out(output, plan.num_query_tokens(), m.num_q_heads, value_dim_of(m));
    out = {placed(out.out), placed(out.lse)};
    cache.attend(layer, plan, {query_view(query), out}, stream_or_own(stream));
    wait();
    return output;
  }
  TensorView kv_view(const std::vector<float>& data) const {
    const ModelShape& m = cache.config().model;
    return placed(view3(data, plan.num_new_tokens(), m.num_kv_heads, m.head_dim));
  }
  TensorView value_view(const std::vector<float>& data) const {
    const ModelShape& m = cache.config().model;
    return placed(view3(data, plan.num_new_tokens(), m.num_kv_heads, value_dim_of(m)));
  }
  TensorView query_view(const std::vector<float>& data) const {
    const ModelShape& m = cache.config().model;
    return placed(view3(data, plan.num_query_tokens(), m.num_q_heads, m.head_dim));
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
                    placed(contiguous_view(ids.data(), DType::kI32, {rows, heads, room})),
                    placed(contiguous_view(counts.data(), DType::kI32, {rows, heads})),
                    async_.stream);
    wait();
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

  /// As memory that the cache's backend reads.
  [[nodiscard]] TensorView placed(TensorView view) const {
    if (on_device_) view.device = {Device::kPinned};
    return view;
  }
  [[nodiscard]] Stream stream_or_own(const Stream& stream) const {
    return stream.executor == nullptr && stream.handle == nullptr ? async_.stream : stream;
  }

  Cache cache;
  decltype(cache.plan({}, {}, {}, {})) plan;

 private:
  std::byte* take(std::size_t bytes, Device::Kind kind) {
    if (bytes == 0) return nullptr;
    return static_cast<std::byte*>(resource_.allocate(bytes, 64, {kind}));
  }
  /// What is handed in stays until it was read.
  const std::vector<float>& keep(const std::vector<float>& data) {
    if (async_.wait == nullptr) return data;
    kept_.push_back(data);
    return kept_.back();
  }

  PlanLimits limits_;
  MemoryNeeds needs_;
  MemoryResource& resource_;
  AsyncStream async_;
  bool on_device_;
  std::byte* memory_;
  std::byte* pinned_;
  std::deque<std::vector<float>> kept_;
};

}  // namespace clusterkv::testing
