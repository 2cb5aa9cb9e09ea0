// SPDX-License-Identifier: Apache-2.0
//
// Sequences that are forked and cut. Each is held against a twin in another cache that has lived the
// same tokens without any of it.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <string>

#include "tests/support/cache_fixture.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {
namespace {

using Outputs = std::vector<Output>;

/// Segments of 96 from position 4 on, windows of 24; layer 0 is dense.
CacheConfig config_of(Residency residency) {
  CacheConfig config = small_config(small_model(2, 6, 2));
  config.select.dense_layers = 1;
  config.store.residency = residency;
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

std::string name_of(const ::testing::TestParamInfo<Residency>& residency) {
  return residency.param == Residency::kHost ? "Host" : "Device";
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

// ---------------------------------------------------------------------------------- truncate

class Truncate : public Lineage {};
INSTANTIATE_TEST_SUITE_P(Residencies, Truncate,
                         ::testing::Values(Residency::kDevice, Residency::kHost), name_of);

TEST_P(Truncate, ToAnyLengthAnswersAsIfTheRestHadNeverCome) {
  for (const int length : kLengths) {
    for (const int prompt : {0, 200}) {
      Cache d(config_), twin(config_);
      const SequenceId id = live(d, 1, 30);
      d.cache.truncate(id, length);
      EXPECT_EQ(d.cache.length(id), length);
      EXPECT_EQ(d.cache.stats().live_tokens, length);
      const SequenceId other = live_less(twin, 1, length);
      for (const auto& [driver, who] : {std::pair{&d, id}, {&twin, other}}) {
        driver->reseed(who, 2);
      }
      EXPECT_TRUE(same_bits(go_on(d, id, 70, prompt), go_on(twin, other, 70, prompt)))
          << "cut at " << length << ", then a prompt of " << prompt;
    }
  }
}

TEST_P(Truncate, TwiceIsTruncateToTheShorter) {
  Cache d(config_), twin(config_);
  const SequenceId id = live(d, 1, 30);
  for (const int length : {280, 270, 150, 120, 98}) d.cache.truncate(id, length);
  const SequenceId other = live_less(twin, 1, 98);
  EXPECT_TRUE(same_bits(go_on(d, id, 100), go_on(twin, other, 100)));
}

TEST_P(Truncate, UndoesTheLastStepWhateverItSealed) {
  Cache d(config_), twin(config_);
  const SequenceId id = live(d, 1, 0);
  const SequenceId other = live(twin, 1, 0);
  for (int i = 0; i < 80; ++i) {
    const std::int64_t before = d.cache.length(id);
    d.reseed(id, 99);
    if (i % 2 == 0) {
      d.step({{id, 1 + i % 7, 1, Phase::kDecode}});
    } else {
      d.step({{id, 1 + i * 3, 1, i % 4 == 1 ? Phase::kPrefill : Phase::kPrefillLast}});
    }
    d.cache.truncate(id, before);
    d.reseed(id, 1);
    ASSERT_TRUE(same_bits(d.decode(id), twin.decode(other))) << "step " << i;
  }
}

TEST_P(Truncate, KeepsWhatOfADraftWasAccepted) {
  Cache d(config_), twin(config_);
  const SequenceId id = live(d, 1, 0);
  const SequenceId other = live(twin, 1, 0);
  for (int i = 0; i < 60; ++i) {
    const int accepted = 1 + i % 5;
    d.step({{id, 5, 1, Phase::kDecode}});
    twin.step({{other, accepted, 1, Phase::kDecode}});
    d.cache.truncate(id, d.cache.length(id) - 5 + accepted);
    if (i % 3 != 0) continue;
    ASSERT_TRUE(same_bits(d.decode(id), twin.decode(other))) << "step " << i;
  }
}

TEST_P(Truncate, EndsAStepThatWasCancelled) {
  const std::vector<StepRow> steps = {
      {{}, 1, 1, Phase::kDecode}, {{}, 250, 1, Phase::kPrefill}, {{}, 110, 1, Phase::kPrefillLast}};
  for (const int decoded : {0, 15, 16, 17, 40}) {  // 16 more pending tokens fill a window
    for (StepRow step : steps) {
      for (const int appended : {0, 1}) {
        Cache d(config_), twin(config_);
        const SequenceId id = step.id = live(d, 1, decoded);
        const SequenceId other = live(twin, 1, decoded);
        d.reseed(id, 99);
        d.begin({step});
        for (int layer = 0; layer < appended; ++layer) d.append(layer);
        d.cache.truncate(id, 300 + decoded);
        d.reseed(id, 1);
        EXPECT_TRUE(same_bits(go_on(d, id, 60), go_on(twin, other, 60)))
            << decoded << " decoded, " << appended << " layers of a step of "
            << step.num_new_tokens;
      }
    }
  }
}

TEST_P(Truncate, EndsAFirstStepThatWasCancelled) {
  Cache d(config_), twin(config_);
  const SequenceId id = d.add(1);
  d.begin({{id, 200, 1, Phase::kPrefillLast}});
  d.append(0);
  d.cache.truncate(id, 0);
  const SequenceId other = twin.add(1);
  EXPECT_TRUE(same_bits(go_on(d, id, 40, 150), go_on(twin, other, 40, 150)));
}

TEST_P(Truncate, GivesAllRowsBackAsTheyWere) {
  Cache d(config_);
  const SequenceId id = live(d, 1, 30);
  const ModelShape& m = config_.model;
  for (const int length : {330, 317, 250, 150, 60, 3}) {
    d.cache.truncate(id, length);
    for (int layer = 0; layer < m.num_layers; ++layer) {
      std::vector<float> key(static_cast<std::size_t>(length * m.num_kv_heads * m.head_dim));
      std::vector<float> value(key.size());
      d.cache.read_rows(layer, id, 0, length, view3(key, length, m.num_kv_heads, m.head_dim),
                        view3(value, length, m.num_kv_heads, m.head_dim));
      EXPECT_TRUE(same_bits(key, d.all_keys(id, layer))) << length;
      EXPECT_TRUE(same_bits(value, d.all_values(id, layer))) << length;
    }
  }
}

// -------------------------------------------------------------------------------------- fork

class Fork : public Lineage {};
INSTANTIATE_TEST_SUITE_P(Residencies, Fork, ::testing::Values(Residency::kDevice, Residency::kHost),
                         name_of);

TEST_P(Fork, OfAnyLengthAnswersAsASequenceOfItsOwn) {
  for (const int length : kLengths) {
    Cache d(config_), twin(config_);
    const SequenceId parent = live(d, 1, 30);
    const SequenceId child = d.fork(parent, length);
    EXPECT_EQ(d.cache.length(child), length);
    EXPECT_EQ(d.cache.length(parent), 330);
    const SequenceId other = live_less(twin, 1, length);
    d.reseed(child, 2);
    twin.reseed(other, 2);
    EXPECT_TRUE(same_bits(go_on(d, child, 70, 200), go_on(twin, other, 70, 200)))
        << "forked at " << length;
    d.cache.remove(child);
    const SequenceId whole = live(twin, 1, 30);
    EXPECT_TRUE(same_bits(go_on(d, parent, 40), go_on(twin, whole, 40)))
        << "parent of a fork at " << length;
  }
}

TEST_P(Fork, InAnyStateOfTheParentIsItsTwin) {
  Cache d(config_), twin(config_);
  const SequenceId parent = live(d, 1, 0);
  SequenceId other = live(twin, 1, 0);
  for (int i = 0; i < 60; ++i) {
    const SequenceId child = d.fork(parent);
    ASSERT_TRUE(same_bits(d.decode(child), twin.decode(other))) << "fork in step " << i;
    ASSERT_TRUE(same_bits(d.decode(child), twin.decode(other))) << "fork in step " << i;
    d.cache.remove(child);
    twin.cache.remove(other);
    d.decode(parent);
    other = live(twin, 1, i + 1);
  }
}

/// Three generations in one batch, each with tokens of its own, and their twins in three caches.
class Family {
 public:
  Family(const CacheConfig& config, bool forks_cut)
      : shared_(config), twins_{Twin(config), Twin(config), Twin(config)} {
    const int lengths[] = {330, forks_cut ? 230 : 330, forks_cut ? 150 : 350};
    ids_.push_back(shared_.add(1));
    shared_.prefill(ids_[0], 300);
    go_on(shared_, ids_[0], 30);
    ids_.push_back(shared_.fork(ids_[0], lengths[1]));
    shared_.reseed(ids_[1], 2);
    if (!forks_cut) go_on(shared_, ids_[1], 20);
    ids_.push_back(shared_.fork(ids_[1], lengths[2]));
    shared_.reseed(ids_[2], 3);
    for (std::size_t i = 0; i < 3; ++i) {
      Twin& twin = twins_[i];
      twin.id = twin.cache->add(1);
      if (forks_cut && i > 0) {
        twin.cache->begin({{twin.id, lengths[i], 0, Phase::kPrefill}});
        twin.cache->append_all();
      } else {
        twin.cache->prefill(twin.id, 300);
        go_on(*twin.cache, twin.id, 30);
        if (i > 0) twin.cache->reseed(twin.id, 2);
        if (i > 0) go_on(*twin.cache, twin.id, 20);
      }
      twin.cache->reseed(twin.id, i + 1);
    }
  }

  void remove(std::size_t member) {
    shared_.cache.remove(ids_[member]);
    is_live_[member] = false;
  }

  /// A token for each that lives: in one batch, and in each twin.
  void expect_same_step() {
    std::vector<StepRow> rows;
    for (std::size_t i = 0; i < 3; ++i) {
      if (is_live_[i]) rows.push_back({.id = ids_[i]});
    }
    const Outputs all = shared_.step(rows);
    int row = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      if (!is_live_[i]) continue;
      const Outputs alone = twins_[i].cache->decode(twins_[i].id);
      const ModelShape& m = shared_.cache.config().model;
      for (std::size_t layer = 0; layer < all.size(); ++layer) {
        EXPECT_TRUE(same_bits({output_row(all[layer], row, m.num_q_heads)}, {alone[layer]}))
            << "member " << i << ", layer " << layer << ", length "
            << shared_.cache.length(ids_[i]);
      }
      ++row;
    }
  }
  [[nodiscard]] CacheStats stats() const { return shared_.cache.stats(); }

 private:
  struct Twin {
    explicit Twin(const CacheConfig& config)
        : cache(std::make_unique<Driver<ClusterKVCache>>(config)) {}
    std::unique_ptr<Driver<ClusterKVCache>> cache;
    SequenceId id{};
  };

  Driver<ClusterKVCache> shared_;
  std::array<Twin, 3> twins_;
  std::vector<SequenceId> ids_;
  std::array<bool, 3> is_live_{true, true, true};
};

TEST_P(Fork, GenerationsLiveBesideEachOtherAndGoInAnyOrder) {
  for (const bool forks_cut : {false, true}) {
    std::array<std::size_t, 3> order = {0, 1, 2};
    do {
      Family family(config_, forks_cut);
      for (const std::size_t next : order) {
        for (int i = 0; i < 30 && !HasFailure(); ++i) family.expect_same_step();
        family.remove(next);
      }
      ASSERT_FALSE(HasFailure()) << "first to go: " << order[0] << ", then " << order[1];
      EXPECT_EQ(family.stats().live_tokens, 0);
      EXPECT_EQ(family.stats().held_bytes, 0);
    } while (std::next_permutation(order.begin(), order.end()));
  }
}

/// The page of the fork's last segment had more segments of the parent, whose quads lie in slots.
TEST_P(Fork, NeverReadsRowsOfAParentThatIsGone) {
  config_.select.budget_tokens = 300;
  Cache d(config_), twin(config_);
  const SequenceId parent = live(d, 1, 0);
  const SequenceId child = d.fork(parent, 100);
  go_on(d, parent, 2);  // most rows of the parent are in slots
  d.cache.remove(parent);
  const SequenceId other = live_less(twin, 1, 100);
  for (const auto& [driver, who] : {std::pair{&d, child}, {&twin, other}}) driver->reseed(who, 2);
  EXPECT_TRUE(same_bits(go_on(d, child, 90), go_on(twin, other, 90)));
}

TEST_P(Fork, DuringAStepHasTheTokensBeforeIt) {
  Cache d(config_), twin(config_);
  const SequenceId parent = live(d, 1, 16);  // the next step seals a window
  const SequenceId other = live(twin, 1, 16);
  d.begin({{.id = parent}});
  twin.begin({{.id = other}});
  d.append(0);
  twin.append_all();
  expect_error<StepError>([&] { d.cache.fork(parent); }, "append() of layer 1");
  expect_error<StepError>([&] { d.cache.fork(parent, 317); }, "expected at most 316");
  const SequenceId child = d.fork(parent, 316);
  // The fork steps while the parent is between two layers.
  const PlanLimits limits{1, 1, 0};
  const std::size_t bytes =
      ClusterKVCache::memory_needs(config_, Backend::kCpu, limits).workspace_bytes;
  const AlignedBytes memory = aligned_bytes(bytes);
  const StepRow row{.id = child};
  const DecodePlan plan = d.cache.plan({&row, 1}, limits, {memory.get(), bytes, nullptr, 0});
  const std::vector<float> other_token(2 * 64, 0.25F);
  for (int layer = 0; layer < 2; ++layer) {
    d.cache.append(layer, plan, view3(other_token, 1, 2, 64), view3(other_token, 1, 2, 64));
  }
  d.append(1);
  EXPECT_TRUE(same_bits(go_on(d, parent, 50), go_on(twin, other, 50)));
  d.cache.truncate(child, 316);
  const SequenceId again = live(twin, 1, 16);
  EXPECT_TRUE(same_bits(go_on(d, child, 50), go_on(twin, again, 50)));
}

TEST_P(Fork, OfAnEmptySequenceIsEmpty) {
  Cache d(config_), twin(config_);
  const SequenceId child = d.fork(d.add(1));
  EXPECT_EQ(d.cache.length(child), 0);
  const SequenceId other = twin.add(1);
  EXPECT_TRUE(same_bits(go_on(d, child, 30), go_on(twin, other, 30)));
}

// ------------------------------------------------------------------------- accounts and errors

TEST_P(Fork, CountsWhatIsSharedOnce) {
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

TEST_P(Fork, UsesTheCapacityToTheLastToken) {
  config_.max_sequences = 3;
  config_.max_tokens = 400;
  for (int round = 0; round < 3; ++round) {
    Cache d(config_, {3, 400, 0});
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

TEST_P(Fork, RefusesWhatCannotBe) {
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

TEST_P(Fork, WithoutRoomForItsOwnTokensIsRefused) {
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

TEST_P(Truncate, WithoutRoomForPendingTokensIsRefused) {
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

TEST_P(Truncate, MakesPlansStaleAndForkDoesNot) {
  Cache d(config_), twin(config_);
  const SequenceId a = live(d, 1, 5), b = d.add(2);
  live(twin, 1, 5), twin.add(2);
  const std::vector<StepRow> rows = {{.id = a}, {.id = b}};
  for (auto* driver : {&d, &twin}) {
    driver->begin(rows);
    driver->append_all();
  }
  const SequenceId child = d.fork(a);
  const std::vector<float> query = d.queries(1);
  EXPECT_EQ(d.attend(1, query), twin.attend(1, query));
  d.cache.truncate(child, 300);
  EXPECT_EQ(d.attend(1, query), twin.attend(1, query));
  d.cache.truncate(a, 306);  // its length: nothing goes
  const std::string stale = "plan: stale, sequence 0 was truncated";
  const std::vector<float> row(2 * 2 * 64);
  expect_error<StepError>([&] { d.attend(1, query); }, stale);
  expect_error<StepError>([&] { (void)d.cache.select(1, d.plan, d.query_view(query)); }, stale);
  expect_error<StepError>([&] { d.append(0); }, stale);
  EXPECT_TRUE(same_bits(d.step(rows), twin.step(rows)));
}

/// What a serving engine does with a system prompt.
TEST(ForkMemory, AThousandForksOfAPrefixCostLessThanTwoPerCentMore) {
  CacheConfig config = CacheConfig::standard(small_model(1, 1, 1));
  config.model.kv_dtype = DType::kBF16;
  config.select.dense_layers = 0;
  config.max_sequences = 1001;
  config.max_tokens = 32768 + 1000 * 600;
  Driver<ClusterKVCache> d(config, {1000, 2048, 0});
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

// ---------------------------------------------------------------------------------- selector

/// Positions of the choice of each step, with its query.
std::vector<std::vector<std::vector<std::vector<std::int32_t>>>> choices(Driver<ClusterSelector>& d,
                                                                         SequenceId id, int steps) {
  std::vector<std::vector<std::vector<std::vector<std::int32_t>>>> all;
  for (int i = 0; i < steps; ++i) {
    d.begin({{.id = id}});
    d.append_all();
    all.push_back(d.positions(1, d.select(1)));
  }
  return all;
}

TEST(SelectorLineage, ForksAndCutsBetweenSegments) {
  const CacheConfig config = config_of(Residency::kDevice);
  for (const int length : {3, 100, 196, 295, 309}) {
    Driver<ClusterSelector> d(config), twin(config);
    const SequenceId id = d.add(1);
    d.prefill(id, 300);
    choices(d, id, 10);
    const SequenceId child = d.fork(id, length);
    const SequenceId other = twin.add(1);
    twin.begin({{other, std::min(length, 300), 0, Phase::kPrefill}});
    twin.append_all();
    if (length > 300) choices(twin, other, length - 300);
    const auto wanted = choices(twin, other, 60);
    EXPECT_EQ(choices(d, child, 60), wanted) << length;
    d.cache.truncate(id, length);
    EXPECT_EQ(choices(d, id, 60), wanted) << length;
  }
}

TEST(SelectorLineage, CannotCutASegment) {
  Driver<ClusterSelector> d(config_of(Residency::kDevice));
  const SequenceId id = d.add(1);
  d.prefill(id, 300);
  choices(d, id, 10);
  const std::string part =
      "num_tokens: 150 is inside a segment, whose rows are the engine's, "
      "expected 100 or 196";
  expect_error<ShapeError>([&] { d.cache.fork(id, 150); }, part);
  expect_error<ShapeError>([&] { d.cache.truncate(id, 150); }, part);
  EXPECT_EQ(d.cache.length(id), 310);
}

}  // namespace
}  // namespace clusterkv::testing
