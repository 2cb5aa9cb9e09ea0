// SPDX-License-Identifier: Apache-2.0
//
// What the headers promise, promise by promise.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/harness.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::testing {
namespace {

/// A cache with one sequence; remembers what was appended.
template <class Cache>
class Life {
 public:
  explicit Life(const CacheConfig& config, std::uint64_t seed = 1)
      : h(config, {2, 2048, 2048}), random_(seed), id(h.cache.add_sequence()) {}

  void step(int tokens, Phase phase, int budget = 0) {
    const ModelShape& m = h.cache.config().model;
    h.begin({{id, tokens, 1, phase, budget}});
    const auto count = static_cast<std::size_t>(tokens * m.num_kv_heads * m.head_dim);
    const auto k = random_.normals(count);
    const auto v = random_.normals(count);
    for (int layer = 0; layer < m.num_layers; ++layer) h.append(layer, k, v);
    key.insert(key.end(), k.begin(), k.end());
    value.insert(value.end(), v.begin(), v.end());
    query = random_.normals(static_cast<std::size_t>(m.num_q_heads * m.head_dim), 2.0F);
  }
  /// Full attention of the step's query over all that was appended.
  Output full() const {
    const ModelShape& m = h.cache.config().model;
    const auto tokens = static_cast<std::int64_t>(key.size()) / (m.num_kv_heads * m.head_dim);
    const auto kv = [&](const std::vector<float>& data) {
      return contiguous_view(data.data(), DType::kF32, {1, tokens, m.num_kv_heads, m.head_dim});
    };
    Output output;
    dense_decode({view3(query, 1, m.num_q_heads, m.head_dim), kv(key), kv(value), {}, 0},
                 make_out(output, 1, m.num_q_heads, m.head_dim));
    return output;
  }

  Harness<Cache> h;
  Random random_;
  SequenceId id;
  std::vector<float> key, value, query;
};

void expect_near(const Output& a, const Output& b, float tolerance) {
  ASSERT_EQ(a.out.size(), b.out.size());
  for (std::size_t i = 0; i < a.out.size(); ++i) ASSERT_NEAR(a.out[i], b.out[i], tolerance);
  for (std::size_t i = 0; i < a.lse.size(); ++i) ASSERT_NEAR(a.lse[i], b.lse[i], tolerance);
}

TEST(Budget, OfAllTokensIsFullAttention) {
  for (const HeadGrouping grouping : {HeadGrouping::kShared, HeadGrouping::kPerQueryHead}) {
    for (const Tail tail : {Tail::kNone, Tail::kMean, Tail::kSecondMoment}) {
      CacheConfig config = small_config(small_model(1, 6, 2, 128));
      config.select.grouping = grouping;
      config.select.tail = tail;
      Life<ClusterKVCache> life(config);
      life.step(700, Phase::kPrefillLast);
      for (int i = 0; i < 40; ++i) life.step(1, Phase::kDecode, 2000);
      const Output output = life.h.attend(0, life.query);
      EXPECT_EQ(life.h.cache.stats().step.dense_selections, 0) << "not the sparse path";
      expect_near(output, life.full(), 1e-5F);
    }
  }
}

TEST(DenseThreshold, SwitchesAtItsLength) {
  CacheConfig config = small_config(small_model());
  config.select.dense_threshold = 1.5F;
  config.select.budget_tokens = 80;
  Life<ClusterKVCache> life(config);
  life.step(100, Phase::kPrefillLast);
  while (life.h.cache.length(life.id) < 125) {
    life.step(1, Phase::kDecode);
    const Output output = life.h.attend(0, life.query);
    const bool dense = life.h.cache.length(life.id) <= 120;
    EXPECT_EQ(life.h.cache.stats().step.dense_selections, dense ? 2 : 0);
    if (dense) expect_near(output, life.full(), 1e-5F);
  }
}

TEST(DenseLayers, AttendToEverythingAndAreNeverClustered) {
  CacheConfig config = small_config(small_model(3));
  config.model.layers = {0, 1, 7};
  config.select.dense_layers = 2;
  Life<ClusterKVCache> life(config);
  life.step(300, Phase::kPrefillLast);
  life.step(1, Phase::kDecode);
  for (const int layer : {0, 1}) expect_near(life.h.attend(layer, life.query), life.full(), 1e-5F);
  life.h.attend(2, life.query);
  const CacheStats stats = life.h.cache.stats();
  EXPECT_EQ(stats.step.dense_selections, 4);
  EXPECT_EQ(stats.step.selections, 6);
  EXPECT_EQ(stats.kmeans_runs, 2 * 3);  // 296 = 3 * 96 + 8, of two KV heads
}

TEST(Accounting, IsExact) {
  for (const Residency residency : {Residency::kDevice, Residency::kHost}) {
    CacheConfig config = small_config(small_model());
    config.store.residency = residency;
    Life<ClusterKVCache> life(config);
    life.step(196, Phase::kPrefillLast);  // 4 sinks, 2 segments of 96
    for (int i = 1; i <= 50; ++i) {
      life.step(1, Phase::kDecode);
      life.h.attend(0, life.query);
      const StepStats s = life.h.cache.stats().step;
      // Windows of 24 leave the pending tokens one step after the 24 were there before the step.
      const int sealed = i <= 24 ? 0 : i <= 25 ? 0 : i <= 49 ? 24 : 48;
      EXPECT_EQ(s.selections, 2);
      EXPECT_EQ(s.sink_tokens, 2 * 4);
      EXPECT_EQ(s.selected_tokens, 2 * 32);
      EXPECT_EQ(s.pending_tokens, 2 * (i - sealed)) << i;
      EXPECT_EQ(s.attended_tokens, s.sink_tokens + s.selected_tokens + s.pending_tokens);
      EXPECT_EQ(s.row_bytes, s.attended_tokens * 2 * 64 * 4);
      EXPECT_EQ(s.index_bytes, s.scored_clusters * (64 + 12));
      EXPECT_EQ(s.estimates, 4);
      EXPECT_GT(s.estimated_mass, 0.0);
      EXPECT_LT(s.estimated_mass, 4.0);
      const std::int64_t quads = s.quad_hits + s.quad_misses + s.quads_in_place;
      EXPECT_EQ(s.copied_bytes, s.quad_misses * 4 * 2 * 64 * 4);
      EXPECT_EQ(quads > 0, residency == Residency::kHost);
    }
    const CacheStats stats = life.h.cache.stats();
    EXPECT_EQ(stats.appended_tokens, 246);
    EXPECT_EQ(stats.live_tokens, 246);
    EXPECT_EQ(stats.steps, 51);
    EXPECT_EQ(stats.kmeans_runs, 2 * (2 + 2));
    EXPECT_EQ(stats.kmeans_tokens, 2 * (2 * 96 + 2 * 24));
  }
}

TEST(Selection, IsTheBudgetExactlyOrAllThereIs) {
  CacheConfig config = small_config(small_model());
  Life<ClusterKVCache> life(config);
  life.step(196, Phase::kPrefillLast);
  for (const int budget : {1, 2, 31, 32, 33, 100, 191, 192, 193, 2000}) {
    life.step(1, Phase::kDecode, budget);
    const Selection s = life.h.cache.select(0, life.h.plan, life.h.query_view(life.query));
    const auto choice = copy_choice(s);
    for (const auto& list : choice.lists[0]) {
      int rows = 0;
      for (std::size_t i = 0; i < list.size(); ++i) {
        rows += list[i].rows;
        if (i > 0) {
          EXPECT_LT(list[i - 1].cluster, list[i].cluster);
        }
      }
      EXPECT_EQ(rows, std::min(budget, 192));
    }
    const auto positions = life.h.positions(0, s);
    for (const auto& list : positions[0]) {
      auto sorted = list;
      std::sort(sorted.begin(), sorted.end());
      EXPECT_EQ(std::adjacent_find(sorted.begin(), sorted.end()), sorted.end()) << "a token twice";
    }
  }
}

TEST(Segments, NeverChangeOnceSealed) {
  CacheConfig config = small_config(small_model(1, 4, 2));
  config.store.residency = Residency::kHost;
  Life<ClusterKVCache> life(config);
  life.step(196, Phase::kPrefillLast);
  life.step(1, Phase::kDecode, 2000);
  const auto before =
      life.h.positions(0, life.h.cache.select(0, life.h.plan, life.h.query_view(life.query)));
  for (int i = 0; i < 960; ++i) life.step(1, Phase::kDecode, 2000);
  const auto after =
      life.h.positions(0, life.h.cache.select(0, life.h.plan, life.h.query_view(life.query)));
  for (std::size_t head = 0; head < 2; ++head) {
    EXPECT_TRUE(
        std::equal(before[0][head].begin(), before[0][head].end() - 1, after[0][head].begin()));
  }
  std::vector<float> key(life.key.size()), value(life.value.size());
  const auto tokens = life.h.cache.length(life.id);
  life.h.cache.read_rows(0, life.id, 0, tokens, view3(key, tokens, 2, 64),
                         view3(value, tokens, 2, 64));
  EXPECT_EQ(key, life.key);
  EXPECT_EQ(value, life.value);
}

TEST(SecondLife, EqualsTheFirst) {
  CacheConfig config = small_config(small_model());
  config.store.residency = Residency::kHost;
  config.store.device_bytes = 50000;
  std::vector<Output> fresh, reused;
  Life<ClusterKVCache> old(config, 9);
  old.step(500, Phase::kPrefillLast);
  for (int i = 0; i < 30; ++i) {
    old.step(1, Phase::kDecode);
    old.h.attend(0, old.query);
  }
  old.h.cache.remove(old.id);
  old.id = old.h.cache.add_sequence();
  old.random_ = Random(1);
  Life<ClusterKVCache> young(config, 1);
  for (auto* life : {&old, &young}) {
    life->step(300, Phase::kPrefillLast);
    for (int i = 0; i < 60; ++i) {
      life->step(1, Phase::kDecode);
      (life == &old ? reused : fresh).push_back(life->h.attend(0, life->query));
    }
  }
  EXPECT_EQ(reused, fresh);
  EXPECT_EQ(old.h.cache.stats().live_tokens, 360);
}

TEST(Sinks, FewerTokensThanSinksAreAllAttended) {
  CacheConfig config = small_config(small_model());
  config.cluster.sink_tokens = 16;
  Life<ClusterKVCache> life(config);
  for (int i = 0; i < 20; ++i) {
    life.step(1, Phase::kDecode);
    expect_near(life.h.attend(0, life.query), life.full(), 1e-5F);
    EXPECT_EQ(life.h.cache.stats().step.sink_tokens, 2 * std::min(i + 1, 16));
  }
}

TEST(Outputs, MayBeHalfPrecisionWithoutLse) {
  CacheConfig config = small_config(small_model());
  Life<ClusterKVCache> life(config);
  life.step(200, Phase::kPrefillLast);
  life.step(1, Phase::kDecode);
  const Output wide = life.h.attend(0, life.query);
  std::vector<std::uint16_t> half(4 * 64);
  life.h.cache.attend(0, life.h.plan,
                      {life.h.query_view(life.query),
                       {contiguous_view(half.data(), DType::kBF16, {1, 4, 64}), {}}});
  for (std::size_t i = 0; i < half.size(); ++i) {
    const float value = std::bit_cast<float>(std::uint32_t{half[i]} << 16);
    EXPECT_NEAR(value, wide.out[i], 0.005F * std::abs(wide.out[i]) + 1e-6F);
  }
}

TEST(Strides, OfKeysDoNotMatter) {
  const CacheConfig config = small_config(small_model());
  Random random(2);
  const std::vector<float> rows = random.normals(200 * 2 * 64);
  std::vector<float> transposed(rows.size());  // [dim, head, token]
  for (std::size_t t = 0; t < 200; ++t) {
    for (std::size_t h = 0; h < 2; ++h) {
      for (std::size_t d = 0; d < 64; ++d) {
        transposed[(d * 2 + h) * 200 + t] = rows[(t * 2 + h) * 64 + d];
      }
    }
  }
  TensorView view = view3(transposed, 200, 2, 64);
  view.stride = {1, 200, 400};
  std::vector<Output> outputs;
  for (const TensorView& tensor : {view3(rows, 200, 2, 64), view}) {
    Harness<ClusterKVCache> h(config, {1, 200, 0});
    h.begin({{h.cache.add_sequence(), 200, 1, Phase::kPrefillLast}});
    h.cache.append(0, h.plan, tensor, tensor);
    outputs.push_back(h.attend(0, std::vector<float>(4 * 64, 0.2F)));
  }
  EXPECT_EQ(outputs[0], outputs[1]);
}

// ---------------------------------------------------------------------------------- selector

/// The engine's part by sparse_decode over token_ids, ours by attend_tail, merged.
TEST(ClusterSelector, WithTheEnginesPartEqualsTheCache) {
  for (const HeadGrouping grouping : {HeadGrouping::kShared, HeadGrouping::kPerQueryHead}) {
    for (const Tail tail : {Tail::kMean, Tail::kSecondMoment}) {
      CacheConfig config = small_config(small_model());
      config.select.grouping = grouping;
      config.select.tail = tail;
      Life<ClusterKVCache> cache(config);
      Life<ClusterSelector> selector(config);
      for (int i = 0; i < 40; ++i) {
        cache.step(i == 0 ? 250 : 1, i == 0 ? Phase::kPrefillLast : Phase::kDecode);
        selector.step(i == 0 ? 250 : 1, i == 0 ? Phase::kPrefillLast : Phase::kDecode);
      }
      const auto& h = selector.h;
      const Selection selection = selector.h.cache.select(0, h.plan, h.query_view(selector.query));
      const std::int64_t heads = selection.cluster_ids.shape[1];
      std::vector<std::int32_t> ids(static_cast<std::size_t>(heads) * 300), counts(8);
      const TensorView id_view = contiguous_view(ids.data(), DType::kI32, {1, heads, 300});
      const TensorView count_view = contiguous_view(counts.data(), DType::kI32, {1, heads});
      selector.h.cache.token_ids(0, h.plan, selection, id_view, count_view);
      Output engine, tail_part, merged;
      const std::int64_t tokens = h.cache.length(selector.id);
      const auto kv = [&](const std::vector<float>& data) {
        return contiguous_view(data.data(), DType::kF32, {1, tokens, 2, 64});
      };
      const std::vector<AttentionOut> parts = {make_out(engine, 1, 4, 64),
                                               make_out(tail_part, 1, 4, 64)};
      sparse_decode({h.query_view(selector.query), kv(selector.key), kv(selector.value), {}, 0},
                    id_view, count_view, parts[0]);
      selector.h.cache.attend_tail(0, h.plan, selection, h.query_view(selector.query), parts[1]);
      merge_states(parts, make_out(merged, 1, 4, 64));
      expect_near(merged, cache.h.attend(0, cache.query), 1e-5F);
    }
  }
}

TEST(ClusterSelector, WorksWithoutValuesButHasNoTail) {
  const CacheConfig config = small_config(small_model());
  Harness<ClusterSelector> h(config, {1, 300, 0});
  const SequenceId id = h.cache.add_sequence();
  Random random(1);
  h.begin({{id, 250, 0, Phase::kPrefillLast}});
  h.cache.append(0, h.plan, h.kv_view(random.normals(250 * 2 * 64)), {});
  h.begin({{id}});
  const std::vector<float> key = random.normals(2 * 64);
  EXPECT_THROW(h.append(0, key, key), ShapeError) << "values after none";
  h.cache.append(0, h.plan, h.kv_view(key), {});
  const std::vector<float> query = random.normals(4 * 64);
  const Selection selection = h.cache.select(0, h.plan, h.query_view(query));
  Output output;
  EXPECT_THROW(
      h.cache.attend_tail(0, h.plan, selection, h.query_view(query), make_out(output, 1, 4, 64)),
      ConfigError);
}

TEST(ClusterSelector, ExportsPagedRows) {
  const CacheConfig config = small_config(small_model());
  Life<ClusterSelector> life(config);
  life.step(250, Phase::kPrefillLast);
  life.step(1, Phase::kDecode);
  const Selection selection = life.h.cache.select(0, life.h.plan, life.h.query_view(life.query));
  const auto positions = life.h.positions(0, selection);
  constexpr int kBlockTokens = 16;
  std::vector<std::int32_t> table;
  for (int i = 0; i < 16; ++i) table.push_back(100 + 7 * i);
  std::vector<std::int32_t> indptr(3), indices(200);
  const auto table_view = contiguous_view(table.data(), DType::kI32, {1, 16});
  const auto export_to = [&](const TensorView& blocks, std::int64_t room) {
    life.h.cache.to_paged(0, life.h.plan, selection, blocks, kBlockTokens,
                          contiguous_view(indptr.data(), DType::kI32, {3}),
                          contiguous_view(indices.data(), DType::kI32, {room}));
  };
  export_to(table_view, 200);
  for (std::size_t head = 0; head < 2; ++head) {
    const auto& list = positions[0][head];
    ASSERT_EQ(indptr[head + 1] - indptr[head], static_cast<int>(list.size()));
    for (std::size_t i = 0; i < list.size(); ++i) {
      const int slot = table[static_cast<std::size_t>(list[i] / kBlockTokens)] * kBlockTokens +
                       list[i] % kBlockTokens;
      EXPECT_EQ(indices[static_cast<std::size_t>(indptr[head]) + i],
                slot * 2 + static_cast<int>(head));
    }
  }
  EXPECT_THROW(export_to(table_view, 10), ShapeError);
  EXPECT_THROW(export_to(contiguous_view(table.data(), DType::kI32, {1, 3}), 200), ShapeError);
  table[0] = -1;
  EXPECT_THROW(export_to(table_view, 200), ValueError);
}

}  // namespace
}  // namespace clusterkv::testing
