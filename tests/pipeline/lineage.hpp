// SPDX-License-Identifier: Apache-2.0
//
// Sequences to fork and cut, and what they answer. Each is held against a twin in another cache that
// has lived the same tokens without any of it.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <utility>

#include "tests/pipeline/residencies.hpp"
#include "tests/support/cache_fixture.hpp"

namespace clusterkv::testing {

using Outputs = std::vector<Output>;

/// Segments of 96 from position 4 on, windows of 24; layer 0 is dense.
inline CacheConfig config_of(Residency residency) {
  CacheConfig config = small_config(small_model(2, 6, 2));
  config.select.dense_layers = 1;
  config.store.residency = residency;
  // 512 KiB of slots, and a page of 256 rows.
  if (residency == Residency::kHybrid) config.store.device_bytes = 900000;
  return config;
}

/// What the next steps answer: a chunk of a prompt, if any, then tokens one by one.
template <class Cache>
Outputs go_on(Driver<Cache>& d, SequenceId id, int steps, int prompt = 0) {
  Outputs all;
  if (prompt > 0) all = d.step({{id, prompt, 1, Phase::kPrefill}});
  for (int i = 0; i < steps; ++i) {
    for (Output& output : d.decode(id)) all.push_back(std::move(output));
  }
  return all;
}

/// Positions of the choice of each step, with its query.
inline std::vector<std::vector<std::vector<std::vector<std::int32_t>>>> choices(
    Driver<ClusterSelector>& d, SequenceId id, int steps) {
  std::vector<std::vector<std::vector<std::vector<std::int32_t>>>> all;
  for (int i = 0; i < steps; ++i) {
    d.begin({{.id = id}});
    d.append_all();
    all.push_back(d.positions(1, d.select(1)));
  }
  return all;
}

class Lineage : public ::testing::TestWithParam<Residency> {
 protected:
  using Cache = Driver<ClusterKVCache>;

  /// A prompt that leaves 8 tokens pending, then decoded tokens.
  static SequenceId live(Cache& d, std::uint64_t seed, int decoded) {
    const SequenceId id = d.add(seed);
    d.prefill(id, 300);
    go_on(d, id, decoded);
    return id;
  }
  /// A sequence of `length` tokens whose segments are those that live() leaves below it.
  static SequenceId live_less(Cache& d, std::uint64_t seed, int length) {
    const SequenceId id = d.add(seed);
    if (length >= 300) {
      d.prefill(id, 300);
      go_on(d, id, length - 300);
    } else if (length > 0) {
      d.begin({{id, length, 0, Phase::kPrefill}});
      d.append_all();
    }
    return id;
  }
  /// Inside and at the ends of sinks, segments, windows and what is pending after live(…, 30).
  static constexpr std::array kLengths = {0,   1,   3,   4,   5,   50,  99,  100,
                                          101, 195, 196, 200, 250, 256, 291, 292,
                                          293, 299, 300, 310, 315, 317, 325, 330};

  CacheConfig config_ = config_of(GetParam());
};

}  // namespace clusterkv::testing
