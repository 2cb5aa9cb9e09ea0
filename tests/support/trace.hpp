// SPDX-License-Identifier: Apache-2.0
//
// Recorded attention, read and replayed without the tool's code.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "clusterkv/config.hpp"
#include "clusterkv/types.hpp"

namespace clusterkv::testing {

/// One layer of a trace file. Its header is trusted: these files are our own.
struct RecordedLayer {
  int layer = 0;  ///< model layer id: random starts of K-means depend on it
  int num_tokens = 0;
  int query_start = 0;  ///< position of the first query
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  float softmax_scale = 0;
  float logit_softcap = 0;                ///< not recorded: as if the model had it
  std::vector<std::uint16_t> key, value;  ///< f16 [num_tokens, num_kv_heads, head_dim]
  std::vector<std::uint16_t> query;       ///< f16 [num_tokens - query_start, num_q_heads, head_dim]

  [[nodiscard]] ModelShape model(DType kv_dtype) const;
};
RecordedLayer load_recorded_layer(const std::string& path, int layer);

float f16_value(std::uint16_t bits);
std::vector<float> widened(const std::vector<std::uint16_t>& f16);

/// Full attention of the first `num_queries` queries in fp64: [query, q_head, head_dim].
std::vector<double> full_attention(const RecordedLayer& recorded, int num_queries);

struct ReplayResult {
  double error_mean = 0;  ///< |o - o_full| / |o_full|, over queries and query heads
  double hit_rate = 0;    ///< chosen clusters that the step before chose too; over steps and heads
};

/// Prefill up to the first query, then token by token through the sparse path. One result a budget.
std::vector<ReplayResult> replay_recorded(const RecordedLayer& recorded, CacheConfig config,
                                          const std::vector<int>& budgets,
                                          const std::vector<double>& full, int num_queries);

}  // namespace clusterkv::testing
