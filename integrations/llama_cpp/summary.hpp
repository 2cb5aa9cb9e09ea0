// SPDX-License-Identifier: Apache-2.0
//
// What CLUSTERKV_STATS=1 says at the end of a context.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "clusterkv/stats.hpp"
#include "integrations/llama_cpp/group.hpp"

namespace clusterkv::llama_cpp {

struct Summary {
  std::int64_t engine_bytes = 0;  ///< of the engine's cache, for the layers taken over
  std::int64_t exact_rows = 0;    ///< outside of groups
  std::int64_t workspace_bytes = 0, held_bytes = 0, resident_bytes = 0;
  int groups = 0, layers = 0;
  Counts counts = {};
  Times times = {};
  StepStats stats = {};
  std::int64_t live_sequences = 0, live_tokens = 0, kmeans_tokens = 0;

  void add(const Group& group);
  /// "name=value" pairs, a topic a line.
  [[nodiscard]] std::vector<std::string> lines() const;
};

}  // namespace clusterkv::llama_cpp
