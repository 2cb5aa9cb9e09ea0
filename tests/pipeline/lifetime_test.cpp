// SPDX-License-Identifier: Apache-2.0
//
// What becomes of tokens: pending, sealed, visible, immutable, gone.
#include <gtest/gtest.h>

#include <map>

#include "tests/pipeline/residencies.hpp"
#include "tests/support/cache_fixture.hpp"

namespace clusterkv::testing {
namespace {

using Positions = std::vector<std::int32_t>;

CacheConfig config_of(Residency residency) {
  CacheConfig config = small_config(small_model(2, 6, 2));
  config.store.residency = residency;
  if (residency == Residency::kHost) config.store.device_bytes = 60000;
  if (residency == Residency::kHybrid) config.store.device_bytes = 2'000'000;  // slots and a page
  return config;
}

/// What sealing should do, from lengths and phases alone.
class Bookkeeper {
 public:
  explicit Bookkeeper(const ClusterConfig& config) : config_(config) {}

  void step(int num_new_tokens, Phase phase) {
    clustered_ = sealed_;
    const std::int64_t before = length_;
    length_ += num_new_tokens;
    const std::int64_t end = phase == Phase::kDecode ? before : length_;
    const int run = phase == Phase::kDecode ? config_.window_tokens : config_.segment_tokens;
    while (run > 0 && end - sinks() - sealed_ >= run) seal(run);
    const std::int64_t rest = end - sinks() - sealed_;
    if (phase == Phase::kPrefillLast && rest >= config_.window_tokens) seal(rest);
  }
  [[nodiscard]] std::int64_t sinks() const {
    return std::min<std::int64_t>(config_.sink_tokens, length_);
  }
  [[nodiscard]] std::int64_t pending() const { return length_ - sinks() - clustered_; }
  [[nodiscard]] std::int64_t clustered() const { return clustered_; }
  [[nodiscard]] std::int64_t sealed() const { return sealed_; }
  [[nodiscard]] int segments() const { return segments_; }

 private:
  void seal(std::int64_t tokens) {
    sealed_ += tokens;
    ++segments_;
  }

  ClusterConfig config_;
  std::int64_t length_ = 0;
  std::int64_t sealed_ = 0;     ///< tokens in segments, this step's included
  std::int64_t clustered_ = 0;  ///< tokens in segments that are visible
  int segments_ = 0;
};

struct Scene {
  int tokens;
  Phase phase;
};

void expect_books(const std::vector<Scene>& scenes, const ClusterConfig& cluster) {
  CacheConfig config = config_of(Residency::kDevice);
  config.cluster = cluster;
  Driver<ClusterKVCache> d(config);
  Bookkeeper books(config.cluster);
  const SequenceId id = d.add(1);
  constexpr std::int64_t kLists = 2 * 2;  // layers, KV heads
  for (std::size_t i = 0; i < scenes.size(); ++i) {
    d.step({{id, scenes[i].tokens, 1, scenes[i].phase, 0}});
    books.step(scenes[i].tokens, scenes[i].phase);
    const CacheStats stats = d.cache.stats();
    ASSERT_EQ(stats.step.pending_tokens, kLists * books.pending()) << "step " << i;
    ASSERT_EQ(stats.step.sink_tokens, kLists * books.sinks()) << "step " << i;
    ASSERT_EQ(stats.step.selected_tokens,
              kLists * std::min<std::int64_t>(books.clustered(), config.select.budget_tokens))
        << "step " << i;
    ASSERT_EQ(stats.kmeans_tokens, kLists * books.sealed()) << "step " << i;
    ASSERT_EQ(stats.kmeans_runs, kLists * books.segments()) << "step " << i;
  }
}

std::vector<Scene> decoded(std::vector<Scene> scenes, int steps) {
  scenes.resize(scenes.size() + static_cast<std::size_t>(steps), {1, Phase::kDecode});
  return scenes;
}

TEST(Sealing, OfAPromptTakesFullSegmentsAndTheRestAtTheEnd) {
  const ClusterConfig c = config_of(Residency::kDevice).cluster;
  expect_books(decoded({{300, Phase::kPrefillLast}}, 60), c);  // leaves 8 tokens pending
  expect_books(decoded({{340, Phase::kPrefillLast}}, 60), c);  // seals a rest of 48
  expect_books(
      decoded({{99, Phase::kPrefill}, {1, Phase::kPrefill}, {200, Phase::kPrefillLast}}, 9), c);
  expect_books(decoded({{27, Phase::kPrefillLast}}, 40), c);  // 23 tokens: not a window
  expect_books(decoded({{28, Phase::kPrefillLast}}, 40), c);  // 24 tokens: a window
}

TEST(Sealing, OfAWholePromptMakesOneSegment) {
  ClusterConfig c = config_of(Residency::kDevice).cluster;
  c.segment_tokens = 0;
  expect_books(decoded({{250, Phase::kPrefill}, {50, Phase::kPrefillLast}}, 60), c);
}

TEST(Sealing, OfDecodedTokensLeavesTheStepsOwn) {
  const ClusterConfig c = config_of(Residency::kDevice).cluster;
  expect_books({{4, Phase::kPrefillLast},
                {60, Phase::kDecode},  // speculated tokens stay
                {1, Phase::kDecode},   // seals two windows of them
                {11, Phase::kDecode},
                {1, Phase::kDecode}},
               c);
  expect_books({{90, Phase::kPrefill}, {1, Phase::kDecode}, {1, Phase::kDecode}}, c);
}

TEST(Sealing, WithoutSinksOrPromptWorksFromTheFirstToken) {
  ClusterConfig c = config_of(Residency::kDevice).cluster;
  c.sink_tokens = 0;
  expect_books(decoded({}, 80), c);
  c.sink_tokens = 40;  // more sinks than a window
  expect_books(decoded({}, 120), c);
}

/// All clusters of a layer: per list, cluster id -> tokens in stored order.
std::vector<std::map<std::int32_t, Positions>> all_clusters(Driver<ClusterKVCache>& d, int layer) {
  const Selection selection = d.select(layer);
  const Choice choice = copy_choice(selection);
  const auto positions = d.positions(layer, selection);
  std::vector<std::map<std::int32_t, Positions>> lists;
  for (std::size_t head = 0; head < choice.lists[0].size(); ++head) {
    auto token = positions[0][head].begin() + d.cache.config().cluster.sink_tokens;
    lists.emplace_back();
    for (const auto& [cluster, rows] : choice.lists[0][head]) {
      lists.back()[cluster] = Positions(token, token + rows);
      token += rows;
    }
  }
  return lists;
}

std::vector<float> stored_rows(const ClusterKVCache& cache, int layer, SequenceId id, int last) {
  const ModelShape& m = cache.config().model;
  const auto size = static_cast<std::size_t>(last * m.num_kv_heads * m.head_dim);
  std::vector<float> key(size), value(size);
  cache.read_rows(layer, id, 0, last, view3(key, last, m.num_kv_heads, m.head_dim),
                  view3(value, last, m.num_kv_heads, m.head_dim));
  key.insert(key.end(), value.begin(), value.end());
  return key;
}

class Life : public ::testing::TestWithParam<Residency> {};

TEST_P(Life, SealedSegmentsNeverChange) {
  CacheConfig config = config_of(GetParam());
  config.select.budget_tokens = 1400;  // a choice lists every cluster
  Driver<ClusterKVCache> d(config);
  const SequenceId id = d.add(1);
  d.prefill(id, 300);
  d.decode(id);
  const auto clusters = all_clusters(d, 1);
  const auto rows = stored_rows(d.cache, 1, id, 300);
  for (int i = 0; i < 960; ++i) {
    d.begin({{.id = id, .num_query_tokens = i % 64 == 63 ? 1 : 0}});
    d.append_all();
    if (i % 64 == 63) d.attend(1, d.queries(1));
  }
  const auto later = all_clusters(d, 1);
  EXPECT_TRUE(same_bits(rows, stored_rows(d.cache, 1, id, 300)));
  for (std::size_t head = 0; head < clusters.size(); ++head) {
    EXPECT_GT(later[head].size(), clusters[head].size());
    for (const auto& [cluster, tokens] : clusters[head]) {
      ASSERT_TRUE(later[head].contains(cluster));
      EXPECT_EQ(later[head].at(cluster), tokens) << "cluster " << cluster;
    }
    EXPECT_GT(std::next(later[head].begin(), std::ptrdiff_t(clusters[head].size()))->first,
              clusters[head].rbegin()->first)
        << "new clusters come after the old";
  }
}

TEST_P(Life, ClustersPartitionTheSealedTokens) {
  CacheConfig config = config_of(GetParam());
  config.select.budget_tokens = 1400;
  Driver<ClusterKVCache> d(config);
  const SequenceId id = d.add(1);
  d.prefill(id, 300);
  d.decode(id);
  for (int layer = 0; layer < 2; ++layer) {
    for (const auto& list : all_clusters(d, layer)) {
      std::vector<int> seen(300);
      for (const auto& [cluster, tokens] : list) {
        EXPECT_TRUE(std::is_sorted(tokens.begin(), tokens.end())) << "by position within a cluster";
        for (const std::int32_t token : tokens) ++seen[static_cast<std::size_t>(token)];
      }
      for (int token = 0; token < 300; ++token) {
        EXPECT_EQ(seen[static_cast<std::size_t>(token)], token >= 4 && token < 292) << token;
      }
    }
  }
}

std::vector<Output> live(Driver<ClusterKVCache>& d, std::uint64_t seed, int prompt, int steps) {
  const SequenceId id = d.add(seed);
  d.prefill(id, prompt, 130);
  std::vector<Output> outputs;
  for (int i = 0; i < steps; ++i) {
    for (Output& output : d.decode(id)) outputs.push_back(std::move(output));
  }
  d.cache.remove(id);
  return outputs;
}

TEST_P(Life, SecondLifeInUsedMemoryEqualsAFirst) {
  Driver<ClusterKVCache> used(config_of(GetParam()));
  Driver<ClusterKVCache> fresh(config_of(GetParam()));
  live(used, 1, 700, 90);
  live(used, 2, 35, 200);
  EXPECT_TRUE(same_bits(live(used, 3, 500, 60), live(fresh, 3, 500, 60)));
  EXPECT_EQ(used.cache.stats().live_tokens, 0);
  EXPECT_EQ(used.cache.stats().live_sequences, 0);
}

TEST_P(Life, EveryTokenOfTheCapacityIsUsable) {
  CacheConfig config = config_of(GetParam());
  config.max_sequences = 3;
  config.max_tokens = 700;
  Driver<ClusterKVCache> d(config, {3, 700, 0});
  for (int round = 0; round < 3; ++round) {
    const SequenceId a = d.add(1), b = d.add(2), c = d.add(3);
    d.prefill(a, 1);
    d.prefill(b, 698 - round);
    d.prefill(c, 1);
    for (int i = 0; i < round; ++i) d.decode(i % 2 == 0 ? a : c);
    EXPECT_EQ(d.cache.stats().live_tokens, 700);
    const StepRow row{.id = b};
    EXPECT_THROW(d.cache.update(d.plan, {&row, 1}), CapacityError);
    for (const SequenceId id : {c, a, b}) d.cache.remove(id);
  }
}

TEST_P(Life, ManyLivesFitIntoTheCapacityOfOne) {
  CacheConfig config = config_of(GetParam());
  config.max_sequences = 1;
  config.max_tokens = 400;
  Driver<ClusterKVCache> d(config, {1, 400, 0});
  for (int life = 0; life < 40; ++life) {
    const SequenceId id = d.add(1);
    d.prefill(id, 399);
    d.decode(id);
    d.cache.remove(id);
  }
  EXPECT_EQ(d.cache.stats().live_tokens, 0);
}

TEST_P(Life, LengthsAdvanceInPlan) {
  Driver<ClusterKVCache> d(config_of(GetParam()));
  const SequenceId id = d.add(1);
  EXPECT_EQ(d.cache.length(id), 0);
  d.begin({{id, 37, 0, Phase::kPrefill}});
  EXPECT_EQ(d.cache.length(id), 37);
  d.append_all();
  EXPECT_EQ(d.cache.length(id), 37);
}

INSTANTIATE_TEST_SUITE_P(Residencies, Life, kResidencies, name_of);

}  // namespace
}  // namespace clusterkv::testing
