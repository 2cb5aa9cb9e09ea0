// SPDX-License-Identifier: Apache-2.0
//
// Stage 1 of 5: cluster. Decisions that both backends share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "clusterkv/config.hpp"
#include "kernels/common/host_device.hpp"

namespace clusterkv::cluster {

/// Clusters of a segment of `num_tokens` tokens; at least `min_clusters`, never more than tokens.
CLUSTERKV_HD inline int num_clusters(int num_tokens, int tokens_per_cluster, int min_clusters) {
  const int wanted = (num_tokens - 1) / tokens_per_cluster + 1;
  const int lifted = wanted > min_clusters ? wanted : min_clusters;
  return num_tokens == 0 ? 0 : (lifted < num_tokens ? lifted : num_tokens);
}

/// What centroids are divided by for the cosine is never less: zero centroids stay zero.
inline constexpr float kSmallestNorm = 1e-12F;

/// The token an unseeded cluster starts from: evenly spaced.
CLUSTERKV_HD inline int even_start(int cluster, int num_tokens, int num_clusters) {
  return static_cast<int>(std::int64_t{cluster} * num_tokens / num_clusters);
}

/// One step of the splitmix64 generator.
CLUSTERKV_HD inline std::uint64_t splitmix64(std::uint64_t& state) {
  state += 0x9e3779b97f4a7c15U;
  std::uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

/// Generator state for one K-means run; depends on nothing but these four.
CLUSTERKV_HD inline std::uint64_t start_seed(std::uint64_t seed, int model_layer, int kv_head,
                                             std::int64_t first_token) {
  std::uint64_t state = seed;
  state = splitmix64(state) ^ static_cast<std::uint64_t>(model_layer);
  state = splitmix64(state) ^ static_cast<std::uint64_t>(kv_head);
  state = splitmix64(state) ^ static_cast<std::uint64_t>(first_token);
  return state;
}

/// A random number below `limit`.
CLUSTERKV_HD inline int draw(std::uint64_t& state, int limit) {
  return static_cast<int>(((splitmix64(state) >> 32) * static_cast<std::uint64_t>(limit)) >> 32);
}

/// `num_clusters` distinct random tokens: the first entries of `tokens` after a partial
/// Fisher-Yates shuffle. `tokens` has room for num_tokens.
CLUSTERKV_HD inline void random_starts(std::uint64_t state, int num_tokens, int num_clusters,
                                       std::int32_t* tokens) {
  for (int i = 0; i < num_tokens; ++i) tokens[i] = i;
  for (int i = 0; i < num_clusters; ++i) {
    const int other = i + draw(state, num_tokens - i);
    const std::int32_t token = tokens[other];
    tokens[other] = tokens[i];
    tokens[i] = token;
  }
}

/// Whether a cluster with `score` replaces the best so far. Clusters come in ascending order, so
/// ties go to the lowest id; a NaN never wins.
CLUSTERKV_HD inline bool is_better(float score, float best) {
  return score > best;
}
/// The same for candidates in any order.
CLUSTERKV_HD inline bool is_better(float score, int id, float best, int best_id) {
  return score > best || (score == best && id < best_id);
}

}  // namespace clusterkv::cluster
