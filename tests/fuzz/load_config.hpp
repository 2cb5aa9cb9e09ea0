// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "clusterkv/config.hpp"

namespace clusterkv::fuzz {

/// Of the caches that load_fuzz.cpp loads into, and of those that make_corpus.cpp saves.
inline CacheConfig load_config(int dense_layers) {
  ModelShape model;
  model.num_layers = 1;
  model.num_q_heads = 2;
  model.num_kv_heads = 1;
  model.head_dim = 64;
  CacheConfig config = CacheConfig::standard(model);
  config.cluster.segment_tokens = 12;
  config.cluster.window_tokens = 8;
  config.cluster.sink_tokens = 2;
  config.select.dense_layers = dense_layers;
  config.select.dense_threshold = 0;
  config.select.budget_tokens = 8;
  config.max_sequences = 2;
  config.max_tokens = 64;
  return config;
}

}  // namespace clusterkv::fuzz
