// SPDX-License-Identifier: Apache-2.0
//
// Statistics are exact: each identity the header states, in every configuration that changes it.
#include <gtest/gtest.h>

#include "tests/support/cache_fixture.hpp"

namespace clusterkv::testing {
namespace {

struct Way {
  HeadGrouping grouping;
  Residency residency;
  Retention retention;
  std::size_t device_bytes;
  DType kv_dtype;
};

class Accounts : public ::testing::TestWithParam<Way> {
 protected:
  Accounts() : config_(small_config(small_model(3, 6, 2))) {
    config_.select.grouping = GetParam().grouping;
    config_.select.dense_layers = 1;
    config_.store.residency = GetParam().residency;
    config_.store.retention = GetParam().retention;
    config_.store.device_bytes = GetParam().device_bytes;
    if (GetParam().kv_dtype != DType::kF32) config_.model.kv_dtype = GetParam().kv_dtype;
  }
  [[nodiscard]] std::int64_t selection_heads() const {
    return config_.select.grouping == HeadGrouping::kShared ? 2 : 6;
  }
  CacheConfig config_;
};

void expect_sum(StepStats& sum, const StepStats& step) {
  sum.selections += step.selections;
  sum.dense_selections += step.dense_selections;
  sum.attended_tokens += step.attended_tokens;
  sum.selected_tokens += step.selected_tokens;
  sum.selected_clusters += step.selected_clusters;
  sum.quad_hits += step.quad_hits;
  sum.quad_misses += step.quad_misses;
  sum.quads_in_place += step.quads_in_place;
  sum.copied_bytes += step.copied_bytes;
  sum.row_bytes += step.row_bytes;
  sum.index_bytes += step.index_bytes;
  sum.value_mean_bytes += step.value_mean_bytes;
  sum.estimates += step.estimates;
  sum.estimated_mass += step.estimated_mass;
}

TEST_P(Accounts, OfEveryStepIsExact) {
  Driver<ClusterKVCache> d(config_, {4, 1024, 60});
  const SequenceId a = d.add(1), b = d.add(2);
  d.prefill(a, 300);  // 4 sinks, 288 clustered, 8 pending
  d.prefill(b, 150);  // 4 sinks, 146 clustered
  StepStats sum = d.cache.stats().total;
  for (int i = 1; i <= 12; ++i) {
    const int budget = i % 2 == 0 ? 57 : 0;
    d.step({{.id = b}, {}, {.id = a, .budget_tokens = budget}});
    const StepStats s = d.cache.stats().step;
    const std::int64_t heads = selection_heads();
    const std::int64_t taken = 32 + (budget == 0 ? 32 : budget);
    EXPECT_EQ(s.selections, 3 * 2 * heads);
    EXPECT_EQ(s.dense_selections, 2 * heads) << "those of layer 0";
    EXPECT_EQ(s.attended_tokens, s.sink_tokens + s.selected_tokens + s.pending_tokens);
    EXPECT_EQ(s.sink_tokens, 3 * heads * 8);
    // Layer 0 attends to everything. The others choose exactly the budget.
    EXPECT_EQ(s.selected_tokens + s.pending_tokens,
              heads * (434 + 8 + 2 * i) + 2 * heads * (taken + 8 + 2 * i));
    EXPECT_EQ(s.row_bytes, s.attended_tokens * 2 * 64 *
                               static_cast<std::int64_t>(size_of(config_.model.kv_dtype)));
    EXPECT_GT(s.scored_clusters, s.selected_clusters);
    EXPECT_EQ(s.scored_clusters, d.cache.stats().clusters * heads / 2) << "all, once a list";
    EXPECT_EQ(s.estimates, 2 * 2 * 6) << "every query head of the sparse layers";
    EXPECT_GT(s.estimated_mass, 0);
    EXPECT_LT(s.estimated_mass, static_cast<double>(s.estimates));
    EXPECT_EQ(s.bytes_touched(), s.row_bytes + s.index_bytes + s.value_mean_bytes);
    expect_sum(sum, s);
  }
  const StepStats total = d.cache.stats().total;
  EXPECT_EQ(total.selections, sum.selections);
  EXPECT_EQ(total.dense_selections, sum.dense_selections);
  EXPECT_EQ(total.attended_tokens, sum.attended_tokens);
  EXPECT_EQ(total.selected_tokens, sum.selected_tokens);
  EXPECT_EQ(total.selected_clusters, sum.selected_clusters);
  EXPECT_EQ(total.quad_hits, sum.quad_hits);
  EXPECT_EQ(total.quad_misses, sum.quad_misses);
  EXPECT_EQ(total.quads_in_place, sum.quads_in_place);
  EXPECT_EQ(total.copied_bytes, sum.copied_bytes);
  EXPECT_EQ(total.row_bytes, sum.row_bytes);
  EXPECT_EQ(total.index_bytes, sum.index_bytes);
  EXPECT_EQ(total.value_mean_bytes, sum.value_mean_bytes);
  EXPECT_EQ(total.estimates, sum.estimates);
  EXPECT_NEAR(total.estimated_mass, sum.estimated_mass, 1e-9);
}

TEST_P(Accounts, OfTheWholeCacheIsExact) {
  Driver<ClusterKVCache> d(config_, {4, 1024, 60});
  const SequenceId a = d.add(1), b = d.add(2);
  d.prefill(a, 300, 100);
  d.prefill(b, 150);
  for (int i = 0; i < 5; ++i) d.step({{.id = b}, {.id = a}});
  const CacheStats s = d.cache.stats();
  EXPECT_EQ(s.steps, 3 + 1 + 5);
  EXPECT_EQ(s.appended_tokens, 300 + 150 + 10);
  EXPECT_EQ(s.kmeans_runs, (3 + 2) * 2 * 2) << "segments x sparse layers x KV heads";
  EXPECT_EQ(s.kmeans_tokens, (288 + 146) * 2 * 2);
  EXPECT_GT(s.clusters, s.kmeans_tokens / 16);
  EXPECT_LE(s.clusters, (3 * 12 + 12 + 7) * 2 * 2);
  EXPECT_EQ(s.live_sequences, 2);
  EXPECT_EQ(s.live_tokens, 460);
  d.cache.remove(a);
  EXPECT_EQ(d.cache.stats().live_sequences, 1);
  EXPECT_EQ(d.cache.stats().live_tokens, 155);
  EXPECT_EQ(d.cache.stats().appended_tokens, 460) << "of all sequences ever";
}

TEST_P(Accounts, OfRecallAddsUpToTheQuadsOfTheChoice) {
  Driver<ClusterKVCache> d(config_, {4, 1024, 60});
  const SequenceId id = d.add(1);
  d.prefill(id, 900);
  const auto quad_bytes = 4 * 2 * 64 * static_cast<std::int64_t>(size_of(config_.model.kv_dtype));
  StepStats sum;
  for (int i = 0; i < 20; ++i) {
    d.decode(id);
    expect_sum(sum, d.cache.stats().step);
  }
  EXPECT_EQ(sum.copied_bytes, sum.quad_misses * quad_bytes);
  if (GetParam().residency == Residency::kDevice) {
    EXPECT_EQ(sum.quad_hits + sum.quad_misses + sum.quads_in_place, 0) << "rows in place";
    return;
  }
  const std::int64_t quads = sum.quad_hits + sum.quad_misses + sum.quads_in_place;
  const std::int64_t rows = 20 * 2 * selection_heads() * 32;  // of the sparse layers
  EXPECT_GE(quads * 4, rows / (config_.select.grouping == HeadGrouping::kShared ? 1 : 3));
  EXPECT_LE(quads, rows);
  EXPECT_GT(sum.quad_misses, 0);
  EXPECT_GT(sum.quad_hits, 0);
  const bool is_small = GetParam().device_bytes != 0;
  EXPECT_EQ(sum.quads_in_place > 0, is_small);
}

TEST(Recall, OfTheSameChoiceTwiceHitsEveryQuad) {
  CacheConfig config = small_config(small_model(1, 2, 1));
  config.store.residency = Residency::kHost;
  Driver<ClusterKVCache> d(config);
  const SequenceId id = d.add(1);
  d.prefill(id, 300);
  d.begin({{.id = id}});
  d.append_all();
  const std::vector<float> query = d.queries(0);
  d.attend(0, query);
  const StepStats first = d.cache.stats().step;
  d.begin({{.id = id}});
  d.append_all();
  d.attend(0, query);
  const StepStats second = d.cache.stats().step;
  EXPECT_EQ(first.quad_hits, 0);
  EXPECT_EQ(second.quad_misses, 0);
  EXPECT_EQ(second.quad_hits, first.quad_misses);
  EXPECT_EQ(second.copied_bytes, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Ways, Accounts,
    ::testing::Values(
        Way{HeadGrouping::kShared, Residency::kDevice, Retention::kLru, 0, DType::kF32},
        Way{HeadGrouping::kPerQueryHead, Residency::kDevice, Retention::kLru, 0, DType::kBF16},
        Way{HeadGrouping::kShared, Residency::kHost, Retention::kLru, 0, DType::kF16},
        Way{HeadGrouping::kShared, Residency::kHost, Retention::kLru, 8192, DType::kF32},
        Way{HeadGrouping::kShared, Residency::kHost, Retention::kRetainSteps, 0, DType::kBF16},
        Way{HeadGrouping::kPerQueryHead, Residency::kHost, Retention::kRetainSteps, 0,
            DType::kF32}));

}  // namespace
}  // namespace clusterkv::testing
