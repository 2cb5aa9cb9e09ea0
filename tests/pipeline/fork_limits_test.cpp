// SPDX-License-Identifier: Apache-2.0
//
// What forks and cuts take, what they refuse, and that a refusal leaves no trace.
#include <array>
#include <cstdio>
#include <stdexcept>

#include "tests/pipeline/lineage.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {
namespace {

class Limits : public Lineage {};
INSTANTIATE_TEST_SUITE_P(Residencies, Limits, kResidencies, name_of);

TEST_P(Limits, CountWhatIsSharedOnce) {
  Cache d(config_, {4, 1024, 0});
  const SequenceId parent = live(d, 1, 8);  // 4 sinks, 288 in segments, 16 pending
  EXPECT_EQ(d.cache.stats().live_tokens, 308);
  const std::int64_t held = d.cache.stats().held_bytes;
  const SequenceId child = d.fork(parent);
  EXPECT_EQ(d.cache.stats().live_tokens, 308 + 20);
  EXPECT_EQ(d.cache.stats().live_sequences, 2);
  EXPECT_EQ(d.cache.stats().held_bytes, held) << "pages are shared until they are written";
  const SequenceId cut = d.fork(parent, 150);  // 96 in a segment
  EXPECT_EQ(d.cache.stats().live_tokens, 308 + 20 + 54);
  d.cache.truncate(child, 250);  // 192 in segments
  EXPECT_EQ(d.cache.stats().live_tokens, 308 + 58 + 54);
  d.cache.remove(parent);
  EXPECT_EQ(d.cache.stats().live_tokens, 250 + 54);
  d.cache.remove(cut);
  EXPECT_EQ(d.cache.stats().live_tokens, 250);
  d.cache.truncate(child, 150);
  EXPECT_EQ(d.cache.stats().live_tokens, 150);
  d.cache.remove(child);
  EXPECT_EQ(d.cache.stats().live_tokens, 0);
  EXPECT_EQ(d.cache.stats().held_bytes, 0);
}

TEST_P(Limits, AreReachedToTheLastToken) {
  config_.max_sequences = 3;
  config_.max_tokens = 400;
  for (int round = 0; round < 3; ++round) {
    Cache d(config_, {.max_rows = 3, .max_new_tokens = 400, .max_context_tokens = 1200});
    const SequenceId a = live(d, 1, 0);     // 12 of its own
    const SequenceId b = d.fork(a);         // 312
    const SequenceId c = d.fork(a, 198);    // 192 shared: 318
    d.step({{a, 40, 0}, {b, 41, 0}, {c}});  // 400
    EXPECT_EQ(d.cache.stats().live_tokens, 400);
    for (const SequenceId id : {a, b, c}) {
      const StepRow row{.id = id};
      expect_error<CapacityError>([&] { d.cache.update(d.plan, {&row, 1}); }, "max_tokens 400");
    }
    const std::array<SequenceId, 3> all = {a, b, c};
    const SequenceId gone = all[static_cast<std::size_t>(round)];
    d.cache.remove(gone);
    const SequenceId left = gone == a ? b : a;
    const auto room = static_cast<int>(400 - d.cache.stats().live_tokens);
    d.step({{left, room, 1, Phase::kPrefillLast}});
    d.cache.truncate(left, 10);
    go_on(d, left, static_cast<int>(400 - d.cache.stats().live_tokens));
    EXPECT_EQ(d.cache.stats().live_tokens, 400);
  }
}

TEST_P(Limits, OfArgumentsAreChecked) {
  Cache d(config_), twin(config_);
  const SequenceId id = live(d, 1, 10);
  const SequenceId other = live(twin, 1, 10);
  const SequenceId unknown{77};
  expect_error<UnknownSequence>([&] { d.cache.fork(unknown); }, "parent: sequence 77 is not live");
  expect_error<UnknownSequence>([&] { d.cache.truncate(unknown, 0); }, "id: sequence 77");
  expect_error<ShapeError>([&] { d.cache.fork(id, -2); }, "num_tokens: -2, expected 0 .. 310");
  expect_error<ShapeError>([&] { d.cache.fork(id, 311); }, "num_tokens: 311, expected 0 .. 310");
  expect_error<ShapeError>([&] { d.cache.truncate(id, -1); }, "num_tokens: -1, expected 0 .. 310");
  expect_error<ShapeError>([&] { d.cache.truncate(id, 311); }, "num_tokens: 311");
  Stream foreign;
  foreign.backend = Backend::kCuda;
  expect_error<BackendUnavailable>([&] { d.cache.fork(id, -1, foreign); }, "stream.backend");
  expect_error<BackendUnavailable>([&] { d.cache.truncate(id, 5, foreign); }, "stream.backend");
  for (int i = 0; i < 3; ++i) d.cache.add_sequence();
  expect_error<CapacityError>([&] { d.cache.fork(id); }, "fork: 4 sequences are live");
  EXPECT_EQ(d.cache.stats().live_tokens, 310);
  EXPECT_TRUE(same_bits(go_on(d, id, 40), go_on(twin, other, 40)));
}

TEST_P(Limits, WithoutRoomForItsOwnTokensAForkIsRefused) {
  config_.max_tokens = 340;
  Cache d(config_, {3, 340, 0}), twin(config_, {3, 340, 0});
  const SequenceId id = live(d, 1, 15);  // 27 of its own, 25 left
  const SequenceId other = live(twin, 1, 15);
  expect_error<CapacityError>([&] { d.cache.fork(id); }, "wants 27 tokens beside 315 live ones");
  expect_error<CapacityError>([&] { d.cache.fork(id, 50); }, "wants 50 tokens beside 315");
  const SequenceId child = d.fork(id, 292);
  EXPECT_EQ(d.cache.stats().live_tokens, 319);
  // Its segment is the parent's too, so that the tokens before the cut are held twice.
  expect_error<CapacityError>([&] { d.cache.truncate(child, 250); }, "wants 54 tokens");
  EXPECT_EQ(d.cache.length(child), 292);
  d.cache.remove(child);
  EXPECT_TRUE(same_bits(go_on(d, id, 20), go_on(twin, other, 20)));
  d.cache.truncate(id, 250);
  EXPECT_EQ(d.cache.stats().live_tokens, 250);
}

TEST_P(Limits, WithoutRoomForPendingTokensACutIsRefused) {
  config_.cluster.segment_tokens = 1100;
  config_.cluster.window_tokens = 1100;
  config_.store.live_tokens = 512;
  config_.max_tokens = 4096;
  config_.max_sequences = 1;  // 2 + 1 + 2 + 1 live pages
  Cache d(config_, {1, 1024, 0}), twin(config_, {1, 1024, 0});
  const SequenceId id = d.add(1);
  const SequenceId other = twin.add(1);
  for (auto* driver : {&d, &twin}) driver->prefill(id, 1000, 500);
  ASSERT_EQ(other, id);
  for (auto* driver : {&d, &twin}) {
    driver->begin({{id, 104, 0, Phase::kPrefill}});  // to its end
    driver->append_all();
    driver->decode(id);
  }
  expect_error<CapacityError>([&] { d.cache.truncate(id, 1050); }, "store.live_tokens");
  EXPECT_EQ(d.cache.length(id), 1105);
  EXPECT_TRUE(same_bits(go_on(d, id, 20), go_on(twin, id, 20)));
  d.cache.truncate(id, 500);
  EXPECT_EQ(d.cache.length(id), 500);
  go_on(d, id, 20);
}

TEST_P(Limits, CountPagesToBeCopied) {
  config_.cluster.segment_tokens = 0;
  config_.cluster.window_tokens = 1000;
  config_.store.live_tokens = 256;
  config_.max_sequences = 3;  // 1 + 3 * (1 + 2) + 1 = 11 live pages
  config_.max_tokens = 10000;
  Cache d(config_, {1, 2304, 0});
  const SequenceId a = d.add(1);
  d.begin({{a, 2304, 0, Phase::kPrefill}});  // 10 pages, the last not full
  d.append_all();
  const SequenceId b = d.fork(a), c = d.fork(a);
  d.decode(b);  // copies the last page, and seals two windows
  const std::string part = "(store.live_tokens)";
  expect_error<CapacityError>([&] { d.decode(c); }, part);
  // Whole pages of the windows go back, but the others still have them.
  expect_error<CapacityError>([&] { d.step({{b, 600, 0, Phase::kPrefill}}); }, part);
  EXPECT_EQ(d.cache.length(b), 2305);
  d.cache.remove(a);
  d.decode(c);  // nobody shares its last page any more
  d.cache.remove(c);
  d.step({{b, 600, 1, Phase::kPrefill}});
}

/// An engine's pool that fails.
class Broken final : public Executor {
 public:
  [[nodiscard]] int concurrency() const noexcept override { return 2; }
  void run(int, void (*task)(void*, int), void* arg) override {
    task(arg, 0);
    throw std::runtime_error("no threads");
  }
};

TEST_P(Limits, AreAsBeforeAFailureHalfway) {
  Cache d(config_), twin(config_);
  const SequenceId id = live(d, 1, 10);
  const SequenceId other = live(twin, 1, 10);
  const CacheStats before = d.cache.stats();
  Broken broken;
  Stream stream;
  stream.executor = &broken;
  for (int i = 0; i < 50; ++i) {
    expect_error<std::runtime_error>([&] { d.cache.fork(id, 150, stream); }, "no threads");
    expect_error<std::runtime_error>([&] { d.cache.truncate(id, 150, stream); }, "no threads");
  }
  const CacheStats after = d.cache.stats();
  EXPECT_EQ(after.held_bytes, before.held_bytes);
  EXPECT_EQ(after.live_tokens, before.live_tokens);
  EXPECT_EQ(after.live_sequences, 1);
  EXPECT_TRUE(same_bits(go_on(d, id, 40), go_on(twin, other, 40)));
}

/// What a serving engine does with a system prompt.
TEST(ForkMemory, AThousandForksOfAPrefixCostLessThanTwoPerCentMore) {
  CacheConfig config = CacheConfig::standard(small_model(1, 1, 1));
  config.model.kv_dtype = DType::kBF16;
  config.select.dense_layers = 0;
  config.max_sequences = 1001;
  config.max_tokens = 32768 + 1000 * 600;
  Driver<ClusterKVCache> d(
      config, {.max_rows = 1000, .max_new_tokens = 2048, .max_context_tokens = 1000 * 32769});
  const SequenceId prefix = d.add(1);
  d.prefill(prefix, 32768, 2048);
  const CacheStats one = d.cache.stats();
  std::vector<StepRow> rows;
  for (int i = 0; i < 1000; ++i) rows.push_back({.id = d.fork(prefix)});
  const CacheStats forked = d.cache.stats();
  EXPECT_LT(static_cast<double>(forked.held_bytes), 1.02 * static_cast<double>(one.held_bytes));
  d.begin(rows);
  d.append_all();
  const CacheStats stepped = d.cache.stats();
  const std::int64_t own = 1000 * 256 * 2 * 64 * 2;  // a page of pending tokens each
  EXPECT_LT(static_cast<double>(stepped.held_bytes - own),
            1.02 * static_cast<double>(one.held_bytes));
  std::printf("prefix %lld bytes, with 1,000 forks %lld, after a step of each %lld\n",
              static_cast<long long>(one.held_bytes), static_cast<long long>(forked.held_bytes),
              static_cast<long long>(stepped.held_bytes));
  for (const StepRow& row : rows) d.cache.remove(row.id);
  d.cache.remove(prefix);
  EXPECT_EQ(d.cache.stats().held_bytes, 0);
}

/// Many forks of one prefix in a step count it in each row: scratch is of max_context_tokens.
TEST(ForkLimits, ABatchOfForksIsBoundByItsContext) {
  CacheConfig config = small_config(small_model());
  config.cluster.segment_tokens = 1024;
  config.cluster.window_tokens = 320;
  config.cluster.tokens_per_cluster = 1;
  config.max_sequences = 9;
  config.max_tokens = 1200;
  const int prompt = 1000;
  const PlanLimits limits{.max_rows = 8, .max_new_tokens = 1024};
  PlanLimits wide = limits;
  wide.max_context_tokens = 8 * (prompt + 2);
  Driver<ClusterKVCache> one(config, limits);
  Driver<ClusterKVCache> narrow(config, limits);
  Driver<ClusterKVCache> many(config, wide);
  std::vector<SequenceId> ids;
  for (Driver<ClusterKVCache>* d : {&one, &narrow, &many}) {
    ids = {d->add(1)};
    d->prefill(ids[0], prompt);
    for (int i = 1; i < 8 && d != &one; ++i) ids.push_back(d->fork(ids[0]));
  }
  std::vector<StepRow> rows;
  for (const SequenceId id : ids) rows.push_back({.id = id});
  expect_error<CapacityError>([&] { narrow.begin(rows); }, "limits.max_context_tokens");
  EXPECT_EQ(narrow.cache.length(ids[0]), prompt);
  const auto wanted = one.decode(ids[0]);
  const auto outputs = many.step(rows);
  for (int row = 0; row < 8; ++row) {
    EXPECT_TRUE(same_bits({output_row(outputs[0], row, 4)}, {wanted[0]})) << row;
  }
  many.step(rows);
  expect_error<CapacityError>([&] { many.step(rows); }, "limits.max_context_tokens");
}

}  // namespace
}  // namespace clusterkv::testing
