// SPDX-License-Identifier: Apache-2.0
//
// The layers of a model that share an attention mask and a shape, with the cache that answers them.
//
//   first layer of a step: mask rows ──> members ──> cut, fork, add ──> plan
//   each layer:            new rows of the engine's cache ──> append ──> attend
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "integrations/llama_cpp/cell_sets.hpp"
#include "integrations/llama_cpp/clusters.hpp"
#include "integrations/llama_cpp/exact.hpp"
#include "integrations/llama_cpp/node.hpp"
#include "integrations/llama_cpp/settings.hpp"
#include "integrations/llama_cpp/store_memory.hpp"

namespace clusterkv::llama_cpp {

/// What is to be known of a layer before its cache can be made. Layers with the same shape share one.
struct LayerShape {
  int layer = 0;
  const ggml_tensor* mask = nullptr;  ///< in one graph: layers with a sliding window have another
  std::int64_t cells_per_stream = 0, num_cells = 0;
  int head_dim = 0, num_q_heads = 0, num_kv_heads = 0;
  ggml_type type = GGML_TYPE_F16;
  float scale = 0, softcap = 0;
  ggml_tensor key = {}, value = {};  ///< whole_cache() of both

  static LayerShape of(const Node& node);
  /// All but the layer are equal.
  [[nodiscard]] bool fits(const LayerShape& other) const;
};

/// Where time went, in seconds.
struct Times {
  double match = 0;   ///< masks read, cells compared, steps planned
  double append = 0;  ///< rows copied, and clustered where a step seals
  double attend = 0;
};

/// What was answered by whom.
struct Counts {
  std::int64_t steps = 0;
  std::int64_t cache_rows = 0;                        ///< (mask row, layer) answered by the cache
  std::int64_t exact_rows = 0;                        ///< answered from the engine's own rows
  std::int64_t forks = 0, cuts = 0, overwritten = 0;  ///< what became of sequences
  std::int64_t evictions = 0, refused_steps = 0;      ///< for want of room
  std::int64_t lists = 0, listed_tokens = 0;          ///< attended to in place
};

class Group {
 public:
  /// \param layers  ascending
  /// \throws Error  if the cache cannot be made; the message says why
  Group(const Settings& settings, const std::vector<LayerShape>& layers, Executor* executor);

  [[nodiscard]] bool has(int layer) const { return index_of(layer) >= 0; }

  /// Answers one layer. The first layer of the group begins a step.
  /// \throws Error  then the step has failed and all sequences are forgotten
  void run(const Node& node);

  [[nodiscard]] const Counts& counts() const { return counts_; }
  [[nodiscard]] const Times& times() const { return times_; }
  [[nodiscard]] CacheStats stats() const { return cache_ ? cache_->stats() : CacheStats{}; }
  [[nodiscard]] std::size_t workspace_bytes() const { return workspace_bytes_; }
  [[nodiscard]] std::size_t resident_bytes() const { return memory_.resident_bytes(); }
  [[nodiscard]] int num_layers() const { return static_cast<int>(layers_.size()); }
  /// Set when something changed that a user should know; taken once.
  std::string take_notice() { return std::exchange(notice_, {}); }

 private:
  struct FreeWorkspace {
    void operator()(std::byte* data) const { operator delete[](data, std::align_val_t{64}); }
  };

  [[nodiscard]] int index_of(int layer) const;
  void begin_step(const Node& node);
  void answer_all_exactly();
  void plan_step(const Node& node);
  void apply(Member& member);
  void append_waiting(CellSet& set, std::size_t count);
  void let_prompts_wait(const CellPrint& print);
  void make_plan();
  void set_rows();
  void append(int index, const Node& node);
  void attend(int index, const Node& node);
  void attend(int index, const Node& node, const TensorView& queries, const TensorView& outs);
  void attend_in_place(int index, const Node& node, const TensorView& queries,
                       const TensorView& outs);
  void choose_cells(int index, const Selection& selection);
  void begin_anew(CellSet& set);
  bool watch_for_windows();
  void forget_all();
  bool evict();
  template <class Fn>
  auto with_room(const Fn& fn);

  Settings settings_;
  std::vector<int> layers_;
  std::vector<LayerShape> shapes_;  ///< of the layers
  CacheConfig config_;
  Executor* executor_;
  StoreMemory memory_;
  std::unique_ptr<std::byte[], FreeWorkspace> workspace_;
  std::size_t workspace_bytes_ = 0;
  std::optional<Clusters> cache_;  ///< none: a sliding window, answered exactly
  PlanLimits limits_;
  std::optional<DecodePlan> plan_;
  CellSets sets_;

  // The step at hand.
  std::vector<MaskRow> rows_;
  std::vector<Member> members_;
  std::vector<StepRow> step_rows_;
  std::vector<int> attended_;  ///< mask rows that the cache answers, in the plan's order
  std::vector<int> exact_;     ///< the others
  bool has_plan_ = false;      ///< false: the whole step is answered exactly
  int windows_seen_ = 0;       ///< steps in a row in which cells left at the front

  ExactAttention exact_attention_;
  CacheRows keys_, values_;
  std::vector<float> queries_, outs_;
  // Where rows are the engine's.
  std::vector<std::int32_t> cells_, cell_counts_;
  TensorView cells_view_, cell_counts_view_;
  std::vector<float> rest_, lse_;
  Counts counts_;
  Times times_;
  std::string notice_;
};

}  // namespace clusterkv::llama_cpp
