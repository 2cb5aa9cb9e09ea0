// SPDX-License-Identifier: Apache-2.0
//
// What a user sets, by environment variables. Knows nothing of ggml.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "clusterkv/config.hpp"

namespace clusterkv::llama_cpp {

struct Settings {
  bool paper = false;           ///< CLUSTERKV_PRESET=standard|paper
  int budget_tokens = -1;       ///< CLUSTERKV_BUDGET; -1: the preset's; 0: takes over nothing
  int dense_layers = -1;        ///< CLUSTERKV_DENSE_LAYERS; -1: the preset's
  std::int64_t max_tokens = 0;  ///< CLUSTERKV_MAX_TOKENS; 0: twice the engine's cells
  int max_sequences = 16;       ///< CLUSTERKV_MAX_SEQUENCES, 1 .. 1024
  bool host_store = false;      ///< CLUSTERKV_STORE=device|host
  bool engine_rows = false;     ///< CLUSTERKV_ROWS=cache|engine
  bool stats = false;           ///< CLUSTERKV_STATS=0|1

  /// \param get  std::getenv, or a test's
  /// \throws ConfigError  naming the variable, its value and what was expected
  static Settings read(const std::function<const char*(const char*)>& get);

  [[nodiscard]] bool takes_over() const noexcept { return budget_tokens != 0; }

  /// Layers below this stay with the engine.
  [[nodiscard]] int first_layer() const;

  /// The preset for `model`, with what was set. Lacks max_sequences and max_tokens.
  [[nodiscard]] CacheConfig config(const ModelShape& model) const;
};

}  // namespace clusterkv::llama_cpp
