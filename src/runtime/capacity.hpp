// SPDX-License-Identifier: Apache-2.0
//
// How much of everything a configuration can ever need. Stores are sized here once, so that a step
// can only run out of max_tokens or max_sequences.
#pragma once

#include <cstdint>

#include "clusterkv/config.hpp"
#include "clusterkv/step.hpp"

namespace clusterkv::runtime {

struct Capacity {
  std::int64_t row_pages;   ///< of the row store: stored tokens
  std::int64_t near_pages;  ///< the first of those: not in the host store in any layer
  bool host_is_bound;       ///< store.host_bytes allows fewer of the others than max_tokens needs
  std::int64_t live_pages;  ///< of the live store: sinks and pending tokens
  std::int64_t blocks;      ///< of the index
  std::int64_t records;     ///< segments
  std::int64_t sink_pages;  ///< of one sequence
  std::int64_t slots;       ///< of one clustered layer and KV head; 0: rows are read in place
  int selection_heads;
};

Capacity capacity_of(const CacheConfig& config);

/// One page of rows in all clustered layers: those of dense layers are never in the host store.
std::size_t row_page_bytes(const CacheConfig& config);

/// Whether rows may lie there. Of a resolved config.
bool has_host_store(const CacheConfig& config);

/// Lengths of the rows of a step together, at most.
std::int64_t context_tokens(const CacheConfig& config, const PlanLimits& limits);

/// Pages, blocks and segments in the tables of a step's rows together. A fork's table has those that it
/// shares.
Capacity step_capacity(const CacheConfig& config, const PlanLimits& limits);

/// The config with defaults that depend on other fields filled in: softmax_scale, value_dim,
/// residency (that of the backend's kAuto), layers.
CacheConfig resolved(const CacheConfig& config, Residency residency);

/// Clusters and rows that one selection list can hold.
int list_capacity(const CacheConfig& config, const PlanLimits& limits);

/// Whether a layer, by its position, attends to everything and is never clustered.
bool is_dense_layer(const CacheConfig& config, int layer);

/// Dense layers come first, because layer ids ascend. The others are clustered.
int count_dense_layers(const CacheConfig& config);
int count_clustered_layers(const CacheConfig& config);

/// The model, with only its dense layers or only the others.
ModelShape dense_layers(const CacheConfig& config);
ModelShape clustered_layers(const CacheConfig& config);

}  // namespace clusterkv::runtime
