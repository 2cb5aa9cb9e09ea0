// SPDX-License-Identifier: Apache-2.0
//
// Sinks, choice, pending and tail are parts of one softmax: together they are the whole.
#include <gtest/gtest.h>

#include <cmath>

#include "clusterkv/attention.hpp"
#include "tests/support/cache_fixture.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kPrompt = 300;

CacheConfig exact_index_config() {
  CacheConfig config = small_config(small_model(2, 6, 2));
  config.cluster.index_dtype = IndexDType::kF32;
  return config;
}

/// All rows of a sequence, as an engine would hold them.
struct EngineRows {
  EngineRows(const ClusterKVCache& cache, int layer, SequenceId id) {
    const ModelShape& m = cache.config().model;
    length = cache.length(id);
    const auto vectors = static_cast<std::size_t>(length * m.num_kv_heads);
    key.resize(vectors * static_cast<std::size_t>(m.head_dim));
    value.resize(vectors * static_cast<std::size_t>(value_dim_of(m)));
    cache.read_rows(layer, id, 0, length, view3(key, length, m.num_kv_heads, m.head_dim),
                    view3(value, length, m.num_kv_heads, value_dim_of(m)));
    const auto view = [&](const std::vector<float>& rows, int dim) {
      return contiguous_view(rows.data(), DType::kF32, {1, length, m.num_kv_heads, dim});
    };
    args.logit_softcap = m.logit_softcap;
    args.key = view(key, m.head_dim);
    args.value = view(value, value_dim_of(m));
  }
  std::int64_t length;
  std::vector<float> key, value;
  DecodeArgs args;
};

Output dense_output(const ClusterKVCache& cache, int layer, SequenceId id,
                    const std::vector<float>& query) {
  const ModelShape& m = cache.config().model;
  EngineRows rows(cache, layer, id);
  rows.args.query = view3(query, 1, m.num_q_heads, m.head_dim);
  Output output;
  dense_decode(rows.args, make_out(output, 1, m.num_q_heads, value_dim_of(m)));
  return output;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  }
  return largest;
}

TEST(PartsOfTheWhole, BudgetOfAllTokensGivesTheDenseResult) {
  for (const HeadGrouping grouping : {HeadGrouping::kShared, HeadGrouping::kPerQueryHead}) {
    for (const Tail tail : {Tail::kNone, Tail::kMean, Tail::kSecondMoment}) {
      CacheConfig config = exact_index_config();
      config.cluster.index_dtype = IndexDType::kInt8;
      config.select.grouping = grouping;
      config.select.tail = tail;
      config.select.budget_tokens = 1000;
      config.model.logit_softcap = tail == Tail::kMean ? 2.0F : 0.0F;
      Driver<ClusterKVCache> d(config);
      const SequenceId id = d.add(1);
      d.prefill(id, kPrompt);
      for (int i = 0; i < 40; ++i) {
        const auto sparse = d.decode(id);
        ASSERT_EQ(d.cache.stats().step.dense_selections, 0) << "must take the sparse path";
        for (int layer = 0; layer < 2; ++layer) {
          const Output dense = dense_output(d.cache, layer, id, d.queries(layer));
          EXPECT_LT(relative_difference(sparse[layer].out, dense.out), small_model_precision());
          EXPECT_LT(largest_difference(sparse[layer].lse, dense.lse), small_model_precision());
        }
      }
    }
  }
}

TEST(PartsOfTheWhole, DenseLayersAndShortSequencesAttendToEverything) {
  CacheConfig config = exact_index_config();
  config.select.dense_layers = 1;
  config.select.dense_threshold = 1.5F;
  config.select.budget_tokens = 204;  // dense up to 306 tokens
  Driver<ClusterKVCache> d(config);
  const SequenceId id = d.add(1);
  d.prefill(id, kPrompt);
  for (int length = kPrompt + 1; length < kPrompt + 20; ++length) {
    const auto sparse = d.decode(id);
    const bool is_short = length <= 306;
    EXPECT_EQ(d.cache.stats().step.dense_selections, is_short ? 4 : 2) << length;
    for (int layer = 0; layer < 2; ++layer) {
      const Output dense = dense_output(d.cache, layer, id, d.queries(layer));
      const double difference = relative_difference(sparse[layer].out, dense.out);
      if (layer == 0 || is_short) {
        EXPECT_LT(difference, small_model_precision());
      } else {
        EXPECT_GT(difference, 1e-4) << "nothing was left out";
      }
    }
  }
}

/// The engine's part over token_ids() with its own kernel.
Output engine_part(const Driver<ClusterKVCache>& cache, int layer, SequenceId id,
                   const std::vector<float>& query,
                   const std::vector<std::vector<std::int32_t>>& lists) {
  const ModelShape& m = cache.cache.config().model;
  EngineRows rows(cache.cache, layer, id);
  rows.args.query = view3(query, 1, m.num_q_heads, m.head_dim);
  std::vector<std::int32_t> ids, counts;
  for (const auto& list : lists) {
    counts.push_back(static_cast<std::int32_t>(list.size()));
    ids.insert(ids.end(), list.begin(), list.end());
    ids.resize(counts.size() * static_cast<std::size_t>(rows.length), -1);
  }
  const auto heads = static_cast<std::int64_t>(lists.size());
  Output output;
  sparse_decode(rows.args, contiguous_view(ids.data(), DType::kI32, {1, heads, rows.length}),
                contiguous_view(counts.data(), DType::kI32, {1, heads}),
                make_out(output, 1, m.num_q_heads, value_dim_of(m)));
  return output;
}

/// ln(e^a + e^b).
double log_sum(double a, double b) {
  const double top = std::max(a, b);
  return std::isinf(top) ? top : top + std::log(std::exp(a - top) + std::exp(b - top));
}

class EveryTail
    : public ::testing::TestWithParam<std::tuple<Tail, HeadGrouping, IndexDType, float, float>> {};

TEST_P(EveryTail, OfSelectorAndEngineMergeToTheCachesResult) {
  const auto [tail, grouping, dtype, tail_share, softcap] = GetParam();
  CacheConfig config = exact_index_config();
  config.model.logit_softcap = softcap;
  config.model.value_dim = softcap > 0 ? 80 : 0;
  config.select.tail = tail;
  config.select.grouping = grouping;
  config.select.tail_share = tail_share;
  config.cluster.index_dtype = dtype;
  Driver<ClusterKVCache> cache(config);
  Driver<ClusterSelector> selector(config);
  const ModelShape& m = cache.cache.config().model;
  const SequenceId id = cache.add(1);
  ASSERT_EQ(selector.add(1), id);
  cache.prefill(id, kPrompt);
  selector.prefill(id, kPrompt);
  for (int i = 0; i < 30; ++i) {
    const auto whole = cache.decode(id);
    selector.begin({{.id = id}});
    for (int layer = 0; layer < m.num_layers; ++layer) {
      selector.append(layer);
      const std::vector<float> query = selector.queries(layer);
      const Selection selection = selector.select(layer);
      EXPECT_EQ(copy_choice(selection), copy_choice(cache.select(layer)));
      Output part = engine_part(cache, layer, id, query, selector.positions(layer, selection)[0]);
      Output rest, total;
      const AttentionOut rest_out = make_out(rest, 1, m.num_q_heads, value_dim_of(m));
      std::vector<AttentionOut> parts = {
          {view3(part.out, 1, m.num_q_heads, value_dim_of(m)),
           contiguous_view(part.lse.data(), DType::kF32, {1, m.num_q_heads})}};
      if (tail == Tail::kNone) {
        EXPECT_THROW(selector.cache.attend_tail(layer, selector.plan, selection,
                                                selector.query_view(query), rest_out),
                     ConfigError);
        rest.lse.assign(rest.lse.size(), -INFINITY);
      } else {
        selector.cache.attend_tail(layer, selector.plan, selection, selector.query_view(query),
                                   rest_out);
        parts.push_back(rest_out);
      }
      merge_states(parts, make_out(total, 1, m.num_q_heads, value_dim_of(m)));
      EXPECT_LT(relative_difference(total.out, whole[layer].out), small_model_precision());
      EXPECT_LT(largest_difference(total.lse, whole[layer].lse), small_model_precision());
      for (std::size_t head = 0; head < part.lse.size(); ++head) {
        EXPECT_NEAR(log_sum(part.lse[head], rest.lse[head]), whole[layer].lse[head],
                    small_model_precision());
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Configurations, EveryTail,
    ::testing::Combine(::testing::Values(Tail::kNone, Tail::kMean, Tail::kSecondMoment),
                       ::testing::Values(HeadGrouping::kShared, HeadGrouping::kPerQueryHead),
                       ::testing::Values(IndexDType::kInt8, IndexDType::kF32),
                       ::testing::Values(1e-4F, 0.02F), ::testing::Values(0.0F, 3.0F)));

TEST(PartsOfTheWhole, WithoutARestThereIsNoTail) {
  CacheConfig config = exact_index_config();
  config.select.budget_tokens = 1000;
  Driver<ClusterSelector> selector(config);
  const SequenceId id = selector.add(1);
  selector.prefill(id, kPrompt);
  selector.begin({{.id = id}});
  selector.append_all();
  Output rest;
  const std::vector<float> query = selector.queries(0);
  selector.cache.attend_tail(0, selector.plan, selector.select(0), selector.query_view(query),
                             make_out(rest, 1, 6, 64));
  for (const float lse : rest.lse) EXPECT_EQ(lse, -INFINITY);
  for (const float x : rest.out) EXPECT_EQ(x, 0.0F);
}

TEST(PartsOfTheWhole, PaddingGivesZeroAndMinusInfinity) {
  Driver<ClusterKVCache> d(exact_index_config());
  const SequenceId id = d.add(1);
  d.prefill(id, kPrompt);
  const auto outputs = d.step({{}, {.id = id}, {}});
  for (const Output& all : outputs) {
    for (const int row : {0, 2}) {
      const Output padding = output_row(all, row, 6);
      EXPECT_TRUE(same_bits(padding.out, std::vector<float>(6 * 64, 0.0F)));
      EXPECT_TRUE(same_bits(padding.lse, std::vector<float>(6, -INFINITY)));
    }
    EXPECT_TRUE(std::isfinite(output_row(all, 1, 6).lse[0]));
  }
}

}  // namespace
}  // namespace clusterkv::testing
