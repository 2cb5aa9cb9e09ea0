// SPDX-License-Identifier: Apache-2.0
//
// Several query tokens a row on the CPU backend.
#include "tests/pipeline/query_block.hpp"

namespace clusterkv::testing {
namespace {

struct OnHost {
  OnHost(const CacheConfig& config, const PlanLimits& limits) : driver(config, limits) {}
  Driver<ClusterKVCache> driver;
};

/// The first layer is dense.
CacheConfig block_config(Tail tail = Tail::kSecondMoment) {
  CacheConfig config = small_config(small_model(2, 4, 2, 64));
  config.select.dense_layers = 1;
  config.select.tail = tail;
  config.cluster.window_tokens = 12;
  return config;
}

TEST(QueryBlock, GivesEachTokenWhatItGetsAlone) {
  for (const Tail tail : {Tail::kNone, Tail::kMean, Tail::kSecondMoment}) {
    for (const int tokens : {2, 5, 16}) {
      expect_tokens_alone_agree<OnHost>(block_config(tail), tokens);
    }
  }
}

TEST(QueryBlock, IsTheSameInARaggedBatch) {
  expect_ragged_batches_agree<OnHost>(block_config());
}

TEST(QueryBlock, OfASequenceOfNothingElseIsCausal) {
  Driver<ClusterKVCache> block(block_config(), block_limits());
  Driver<ClusterKVCache> single(block_config(), block_limits());
  const SequenceId id = block.add(7);
  ASSERT_EQ(single.add(7), id);
  const auto all = block.step({{id, 9, 9}});  // among the sinks
  for (int token = 0; token < 9; ++token) {
    const auto wanted = single.decode(id);
    for (std::size_t layer = 0; layer < all.size(); ++layer) {
      const Output row = output_row(all[layer], token, 4);
      EXPECT_LT(relative_difference(row.out, wanted[layer].out), 1e-5) << token;
    }
  }
}

/// A model whose query heads are those of all tokens.
CacheConfig widened(CacheConfig config, int tokens) {
  config.model.num_q_heads *= tokens;
  return config;
}

TEST(QueryBlock, ChoosesAsOneGroupOfAllItsHeads) {
  constexpr int kTokens = 3;
  constexpr int kDim = 64;
  constexpr int kGroup = 2;
  Driver<ClusterKVCache> block(block_config(), block_limits());
  Driver<ClusterKVCache> wide(widened(block_config(), kTokens), block_limits());
  const SequenceId id = begin_life(block);
  ASSERT_EQ(begin_life(wide), id);
  block.begin({{id, kTokens, kTokens}});
  wide.begin({{id, kTokens, 1}});
  block.append_all();
  wide.append_all();
  const std::vector<float> queries = block.queries(1);  // [token, kv_head, head of a group]
  std::vector<float> turned;                            // [kv_head, token, head of a group]
  for (int kv_head = 0; kv_head < 2; ++kv_head) {
    for (int token = 0; token < kTokens; ++token) {
      const auto first = queries.begin() + (token * 2 + kv_head) * kGroup * kDim;
      turned.insert(turned.end(), first, first + kGroup * kDim);
    }
  }
  const Choice wanted = copy_choice(wide.cache.select(1, wide.plan, wide.query_view(turned)));
  EXPECT_EQ(copy_choice(block.select(1)), wanted);
}

TEST(QueryBlock, IsRefusedWhereItDoesNotFit) {
  Driver<ClusterKVCache> d(block_config(), block_limits());
  const SequenceId id = d.add(1);
  for (const StepRow& row : {StepRow{id, 20, 17}, StepRow{id, 2, 3}, StepRow{id, 2, -1}}) {
    expect_error<ShapeError>([&] { d.begin({row}); }, "num_query_tokens");
  }
  Driver<ClusterKVCache> few(block_config(), {.max_rows = 1, .max_new_tokens = 9});
  const SequenceId other = few.add(1);
  expect_error<ShapeError>([&] { few.begin({{other, 2, 2}}); }, "limits.max_query_tokens");
  CacheConfig config = block_config();
  config.select.grouping = HeadGrouping::kPerQueryHead;
  Driver<ClusterKVCache> alone(config, block_limits());
  const SequenceId third = alone.add(1);
  expect_error<ShapeError>([&] { alone.begin({{third, 2, 2}}); }, "kPerQueryHead");
  for (const int most : {0, 17, -1}) {
    expect_error<ShapeError>(
        [&] {
          ClusterKVCache::memory_needs(block_config(), Backend::kCpu, {.max_query_tokens = most});
        },
        "limits.max_query_tokens");
  }
  EXPECT_EQ(d.cache.length(id), 0);
  d.step({{id, 3, 3}});
}

}  // namespace
}  // namespace clusterkv::testing
