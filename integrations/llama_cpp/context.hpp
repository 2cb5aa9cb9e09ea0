// SPDX-License-Identifier: Apache-2.0
//
// What belongs to one context of the engine: its groups of layers, threads and summary.
#pragma once

#include <ggml-backend.h>

#include <memory>
#include <vector>

#include "integrations/llama_cpp/group.hpp"
#include "integrations/llama_cpp/omp_executor.hpp"
#include "integrations/llama_cpp/settings.hpp"

namespace clusterkv::llama_cpp {

class Context {
 public:
  explicit Context(const Settings& settings) : settings_(settings) {}
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  /// Answers all attention nodes of a graph. Never throws: an error is in the log.
  ggml_status compute(ggml_cgraph& graph) noexcept;

  void set_num_threads(int num_threads) noexcept { executor_.set_num_threads(num_threads); }

 private:
  void answer(const Node& node);
  void answer_exactly(const Node& node);
  void learn(const Node& node);
  void make_groups();
  void log_summary() const;

  Settings settings_;
  OmpExecutor executor_;
  /// Layers are learned in the first step, which is answered exactly; the second makes the groups.
  std::vector<LayerShape> layers_;
  std::int64_t cache_bytes_ = 0;  ///< of the engine's own, for these layers
  bool is_learned_ = false;
  std::vector<std::unique_ptr<Group>> groups_;
  ExactAttention exact_;
  std::int64_t exact_rows_ = 0;
};

}  // namespace clusterkv::llama_cpp
