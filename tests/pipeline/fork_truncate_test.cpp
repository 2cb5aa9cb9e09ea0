// SPDX-License-Identifier: Apache-2.0
//
// What sequences answer that were forked or cut, whatever becomes of their relatives.
#include <algorithm>
#include <array>
#include <memory>

#include "tests/pipeline/lineage.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {
namespace {

// ---------------------------------------------------------------------------------- truncate

class Truncate : public Lineage {};
INSTANTIATE_TEST_SUITE_P(Residencies, Truncate, kResidencies, name_of);

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
INSTANTIATE_TEST_SUITE_P(Residencies, Fork, kResidencies, name_of);

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

TEST_P(Fork, AmongSinksOfMoreThanAPage) {
  config_.cluster.sink_tokens = 300;
  for (const int length : {10, 255, 256, 257, 299, 300, 301}) {
    Cache d(config_), twin(config_);
    const SequenceId parent = live_less(d, 1, length);
    const SequenceId child = d.fork(parent);
    d.reseed(child, 2);
    for (const auto& [id, seed] : {std::pair{child, 2}, {parent, 1}}) {
      const SequenceId other = live_less(twin, 1, length);
      twin.reseed(other, static_cast<std::uint64_t>(seed));
      EXPECT_TRUE(same_bits(go_on(d, id, 50, 320), go_on(twin, other, 50, 320))) << length;
      twin.cache.remove(other);
    }
  }
}

TEST_P(Fork, OfAnEmptySequenceIsEmpty) {
  Cache d(config_), twin(config_);
  const SequenceId child = d.fork(d.add(1));
  EXPECT_EQ(d.cache.length(child), 0);
  const SequenceId other = twin.add(1);
  EXPECT_TRUE(same_bits(go_on(d, child, 30), go_on(twin, other, 30)));
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

// ---------------------------------------------------------------------------------- selector

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
