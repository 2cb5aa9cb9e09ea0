// SPDX-License-Identifier: Apache-2.0
//
// The C API in the form of the C++ API, so that what is written for one runs on both.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "clusterkv/c_api.h"
#include "clusterkv/clusterkv.hpp"

namespace clusterkv::testing {

/// A struct of the C API with its size set.
template <class T>
T c_struct() {
  T it{};
  it.struct_size = sizeof it;
  return it;
}

/// Throws the C++ error that a code stands for.
void throw_unless_ok(ckv_status status, const ckv_error& error);

/// call(&error), as a call that throws.
template <class Call>
void c_call(const Call& call) {
  ckv_error error = c_struct<ckv_error>();
  const ckv_status status = call(&error);
  throw_unless_ok(status, error);
}

ckv_config c_config(const CacheConfig& config);
ckv_plan_limits c_limits(const PlanLimits& limits);
std::vector<ckv_step_row> c_rows(std::span<const StepRow> rows);

/// A view as a DLTensor; NULL if it is empty.
class CTensor {
 public:
  explicit CTensor(const TensorView& view);
  CTensor(const CTensor&) = delete;
  CTensor& operator=(const CTensor&) = delete;
  operator const ckv_tensor*() const { return is_empty_ ? nullptr : &tensor; }

  ckv_tensor tensor{};
  std::int64_t shape[TensorView::kMaxRank];
  std::int64_t stride[TensorView::kMaxRank];

 private:
  bool is_empty_;
};

/// AttendArgs and all that they point to.
struct CAttendArgs {
  explicit CAttendArgs(const AttendArgs& from);
  CTensor query, out, lse, sink_logits;
  ckv_attention_out result = c_struct<ckv_attention_out>();
  ckv_attend_args args = c_struct<ckv_attend_args>();
};

/// An Executor as callbacks, and the handle of them.
class CExecutor {
 public:
  explicit CExecutor(Executor* executor);
  ~CExecutor() { ckv_executor_destroy(handle, nullptr); }
  CExecutor(const CExecutor&) = delete;
  CExecutor& operator=(const CExecutor&) = delete;

  ckv_executor* handle = nullptr;  ///< NULL for none
};

ckv_memory_callbacks c_memory(MemoryResource& memory);

/// DecodePlan
class CPlan {
 public:
  CPlan() = default;
  explicit CPlan(ckv_plan* plan) : plan_(plan) {}
  [[nodiscard]] ckv_plan* get() const { return plan_.get(); }
  [[nodiscard]] int num_rows() const { return count(ckv_plan_num_rows); }
  [[nodiscard]] int num_new_tokens() const { return count(ckv_plan_num_new_tokens); }
  [[nodiscard]] int num_query_tokens() const { return count(ckv_plan_num_query_tokens); }

 private:
  template <class Fn>
  [[nodiscard]] int count(Fn* function) const {
    std::int32_t number = 0;
    if (plan_ != nullptr) c_call([&](ckv_error* e) { return function(get(), &number, e); });
    return number;
  }
  struct Destroy {
    void operator()(ckv_plan* plan) const { ckv_plan_destroy(plan, nullptr); }
  };
  std::unique_ptr<ckv_plan, Destroy> plan_;
};

/// ClusterKVCache through the C API.
class CCache {
 public:
  explicit CCache(const CacheConfig& config, const Resources& resources = {});
  ~CCache();
  CCache(const CCache&) = delete;
  CCache& operator=(const CCache&) = delete;

  static MemoryNeeds memory_needs(const CacheConfig& config, Backend backend,
                                  const PlanLimits& limits);
  [[nodiscard]] const CacheConfig& config() const { return config_; }
  SequenceId add_sequence();
  SequenceId fork(SequenceId parent, std::int64_t num_tokens = -1, Stream stream = {});
  void truncate(SequenceId id, std::int64_t num_tokens, Stream stream = {});
  void remove(SequenceId id, Stream stream = {});
  void save(SequenceId id, const WriteFn& write, Stream stream = {}) const;
  SequenceId load(const ReadFn& read, Stream stream = {});
  [[nodiscard]] std::int64_t length(SequenceId id) const;
  CPlan plan(std::span<const StepRow> rows, const PlanLimits& limits, Workspace workspace,
             Stream stream = {});
  void update(CPlan& plan, std::span<const StepRow> rows, Stream stream = {});
  void append(int layer, const CPlan& plan, const TensorView& key, const TensorView& value,
              Stream stream = {});
  void attend(int layer, const CPlan& plan, const AttendArgs& args, Stream stream = {});
  void prefetch(int layer, const CPlan& plan, const TensorView& query_hint, Stream stream = {});
  Selection select(int layer, const CPlan& plan, const TensorView& query, Stream stream = {});
  void attend_selected(int layer, const CPlan& plan, const Selection& selection,
                       const AttendArgs& args, Stream stream = {});
  void token_ids(int layer, const CPlan& plan, const Selection& selection, const TensorView& ids,
                 const TensorView& counts, Stream stream = {}) const;
  void read_rows(int layer, SequenceId id, std::int64_t first, std::int64_t last,
                 const TensorView& key, const TensorView& value, Stream stream = {}) const;
  [[nodiscard]] CacheStats stats() const;

  [[nodiscard]] ckv_cache* get() const { return cache_; }

 private:
  CacheConfig config_;
  CExecutor executor_;
  ckv_cache* cache_ = nullptr;
};

/// A stream and what it points to.
struct CStream {
  explicit CStream(const Stream& stream);
  operator const ckv_stream*() const { return &value; }
  CExecutor executor;
  ckv_stream value = c_struct<ckv_stream>();
};

/// A call of a layer.
struct CCall {
  CCall(int layer, const CPlan& plan, const Stream& stream);
  operator const ckv_layer_call*() const { return &value; }
  CStream stream;
  ckv_layer_call value = c_struct<ckv_layer_call>();
};

ckv_selection c_selection(const CTensor& ids, const CTensor& counts);
TensorView view_of(const ckv_tensor& tensor);
CacheStats stats_of(const ckv_stats& stats, const ckv_step_stats& total,
                    const ckv_step_stats& step);

}  // namespace clusterkv::testing
