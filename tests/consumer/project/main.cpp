// SPDX-License-Identifier: Apache-2.0
#include <clusterkv/clusterkv.hpp>
#include <cstdio>
#include <string>

int main() {
  clusterkv::ModelShape model;
  model.num_layers = 1;
  model.num_q_heads = 4;
  model.num_kv_heads = 2;
  model.head_dim = 64;
  auto config = clusterkv::CacheConfig::standard(model);
  config.max_sequences = 1;
  config.max_tokens = 128;
  clusterkv::ClusterKVCache cache(config);
  const auto id = cache.add_sequence();
  cache.remove(id);
  try {
    (void)cache.length(id);
  } catch (const clusterkv::UnknownSequence& error) {
    std::printf("clusterkv %s: %s\n", clusterkv::version(), error.what());
    return 0;
  }
  return 1;
}
