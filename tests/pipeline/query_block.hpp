// SPDX-License-Identifier: Apache-2.0
//
// Steps in which several tokens of a row attend, on any backend.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/support/cache_fixture.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {

constexpr int kBlockPrompt = 150;

inline PlanLimits block_limits() {
  return {.max_rows = 4, .max_new_tokens = 400, .max_query_tokens = 16};
}

/// A prompt, and steps until a window was clustered and read.
inline SequenceId begin_life(Driver<ClusterKVCache>& driver, std::uint64_t seed = 7) {
  const SequenceId id = driver.add(seed);
  driver.prefill(id, kBlockPrompt, 80);
  for (int i = 0; i < 14; ++i) {
    driver.begin({{.id = id, .num_query_tokens = 0}});
    driver.append_all();
  }
  return id;
}

/// A block's output for token t is what the token alone makes of the block's choice, when the later ones
/// have not come. Place: a cache with a `driver`, made from a config and limits.
template <class Place>
void expect_tokens_alone_agree(const CacheConfig& config, int tokens) {
  const ModelShape& m = config.model;
  Place block(config, block_limits());
  const SequenceId id = begin_life(block.driver);
  block.driver.begin({{id, tokens, tokens}});
  block.driver.append_all();
  for (int layer = 0; layer < m.num_layers; ++layer) {
    const std::vector<float> queries = block.driver.queries(layer);
    const Output all = block.driver.attend(layer, queries);
    const Selection selection = block.driver.select(layer);
    for (int token = 0; token < tokens; ++token) {
      Place alone(config, block_limits());
      ASSERT_EQ(begin_life(alone.driver), id);
      alone.driver.begin({{id, token + 1, 1}});
      alone.driver.append_all();
      const std::vector<float> query = alone.driver.queries(layer);
      Output output;
      AttentionOut out = make_out(output, 1, m.num_q_heads, m.head_dim);
      out = {alone.driver.placed(out.out), alone.driver.placed(out.lse)};
      alone.driver.cache.attend_selected(layer, alone.driver.plan, selection,
                                         {alone.driver.query_view(query), out},
                                         alone.driver.stream_or_own({}));
      alone.driver.wait();
      const Output row = output_row(all, token, m.num_q_heads);
      EXPECT_LT(relative_difference(row.out, output.out), 1e-5) << layer << " " << token;
      EXPECT_LT(relative_difference(row.lse, output.lse), 1e-5) << layer << " " << token;
    }
  }
}

/// Rows of a batch with other numbers of queries, padding among them, are what they are alone.
template <class Place>
void expect_ragged_batches_agree(const CacheConfig& config) {
  const auto alone = [&config](std::uint64_t seed, int new_tokens, int queries) {
    Place place(config, block_limits());
    const SequenceId id = begin_life(place.driver, seed);
    return place.driver.step({{id, new_tokens, queries}});
  };
  const auto first = alone(8, 4, 4);
  const auto last = alone(7, 5, 3);
  Place batch(config, block_limits());
  const SequenceId other = begin_life(batch.driver, 8);
  const SequenceId id = begin_life(batch.driver, 7);
  const SequenceId silent = begin_life(batch.driver, 9);
  const auto outputs =
      batch.driver.step({{other, 4, 4}, {kNoSequence, 2, 2}, {silent, 4, 0}, {id, 5, 3}});
  const int q_heads = config.model.num_q_heads;
  for (std::size_t layer = 0; layer < outputs.size(); ++layer) {
    ASSERT_EQ(outputs[layer].lse.size(), static_cast<std::size_t>(9 * q_heads));
    const auto expect_row = [&](int row, const Output& wanted, int token) {
      EXPECT_TRUE(same_bits({output_row(outputs[layer], row, q_heads)},
                            {output_row(wanted, token, q_heads)}))
          << layer << " " << row;
    };
    for (int token = 0; token < 4; ++token) expect_row(token, first[layer], token);
    for (int token = 0; token < 3; ++token) expect_row(6 + token, last[layer], token);
    for (const int padding : {4, 5}) {
      for (const float x : output_row(outputs[layer], padding, q_heads).out) EXPECT_EQ(x, 0.0F);
      for (const float x : output_row(outputs[layer], padding, q_heads).lse)
        EXPECT_EQ(x, -INFINITY);
    }
  }
}

}  // namespace clusterkv::testing
