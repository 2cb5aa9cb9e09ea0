// SPDX-License-Identifier: Apache-2.0
//
// What happens when device_bytes or host_bytes is reached: slots are given to others or rows are read in
// place, which never changes an answer; a step whose segments the host store cannot take is refused whole.
#include "tests/pipeline/lineage.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {
namespace {

/// One page of rows of the layer that chooses, both KV heads.
std::size_t page_bytes() {
  return 2 * 256 * 2 * 64 * size_of(small_model_dtype);
}

CacheConfig config_with(std::size_t device_bytes, std::size_t host_bytes) {
  CacheConfig config = config_of(Residency::kHost);
  config.store.device_bytes = device_bytes;
  config.store.host_bytes = host_bytes;
  return config;
}

TEST(DevicePressure, TakesSlotsByPolicyAndReadsTheRestInPlace) {
  const std::size_t quad_bytes = 4 * 2 * 64 * size_of(small_model_dtype);
  const auto slots_of = [=](std::size_t slots) { return slots * 2 * quad_bytes; };  // 2 planes
  for (const Retention retention : {Retention::kLru, Retention::kRetainSteps}) {
    std::vector<StepStats> totals;
    Outputs wanted;
    for (const std::size_t slots : {std::size_t{400}, std::size_t{40}, std::size_t{6}}) {
      CacheConfig config = config_with(slots_of(slots), 0);
      config.store.retention = retention;
      Driver<ClusterKVCache> d(config);
      const SequenceId id = d.add(1);
      d.prefill(id, 900);
      const Outputs outputs = go_on(d, id, 30);
      totals.push_back(d.cache.stats().total);
      if (wanted.empty()) wanted = outputs;
      EXPECT_TRUE(same_bits(outputs, wanted)) << slots << " slots";
    }
    const auto quads = [](const StepStats& s) {
      return s.quad_hits + s.quad_misses + s.quads_in_place;
    };
    EXPECT_EQ(totals[0].quads_in_place, 0);
    EXPECT_EQ(totals[1].quads_in_place, 0) << "32 rows touch at most 32 quads a step";
    EXPECT_GT(totals[2].quads_in_place, 0);
    EXPECT_EQ(quads(totals[1]), quads(totals[0]));
    EXPECT_EQ(quads(totals[2]), quads(totals[0]));
    if (retention == Retention::kLru) {
      EXPECT_GT(totals[1].quad_misses, totals[0].quad_misses) << "quads were evicted";
    } else {
      EXPECT_GE(totals[1].quad_misses, totals[0].quad_misses);
    }
    EXPECT_GT(totals[2].quads_in_place + totals[2].quad_misses, totals[1].quad_misses);
  }
}

TEST(HostPressure, RefusesAStepBeforeAnythingChanges) {
  const CacheConfig config = config_with(0, 4 * page_bytes());
  Driver<ClusterKVCache> d(config), twin(config_with(0, 0));
  const SequenceId a = d.add(1), b = d.add(2);
  ASSERT_EQ(twin.add(1), a);
  ASSERT_EQ(twin.add(2), b);
  for (auto* each : {&d, &twin}) {
    each->prefill(a, 700);  // 696 rows, three pages
    each->prefill(b, 200);  // 196 rows, one page
  }
  EXPECT_EQ(d.cache.stats().host_bytes, static_cast<std::int64_t>(4 * page_bytes()));
  const CacheStats before = d.cache.stats();
  const StepRow more{b, 100, 1, Phase::kPrefillLast};
  for (int again = 0; again < 2; ++again) {
    expect_error<CapacityError>(
        [&] {
          d.cache.update(d.plan, {&more, 1});
        },
        "more pages of 256 tokens, expected at most 0 (store.host_bytes)");
    EXPECT_EQ(d.cache.length(b), 200);
    EXPECT_EQ(d.cache.stats().steps, before.steps);
    EXPECT_EQ(d.cache.stats().held_bytes, before.held_bytes);
  }
  // What fills no page more still goes.
  EXPECT_TRUE(same_bits(go_on(d, b, 40), go_on(twin, b, 40)));
  // Eviction is the caller's.
  d.cache.remove(a);
  EXPECT_EQ(d.cache.stats().host_bytes, static_cast<std::int64_t>(page_bytes()));
  EXPECT_TRUE(same_bits(d.step({more}), twin.step({more})));
  EXPECT_TRUE(same_bits(go_on(d, b, 40), go_on(twin, b, 40)));
}

TEST(HostPressure, CountsRowsOfABatchTogetherAndPagesOfForksToBeCopied) {
  Driver<ClusterKVCache> d(config_with(0, 2 * page_bytes()));
  const SequenceId a = d.add(1), b = d.add(2);
  d.begin({{a, 10, 0, Phase::kPrefill}, {b, 10, 0, Phase::kPrefill}});
  d.append_all();
  const StepRow both[] = {{a, 150, 0, Phase::kPrefillLast}, {b, 260, 0, Phase::kPrefillLast}};
  expect_error<CapacityError>([&] { d.cache.update(d.plan, both); }, "in 3 more pages");
  d.begin({both[0]});
  d.append_all();
  const SequenceId child = d.fork(a);
  d.begin(
      {{child, 100, 0, Phase::kPrefillLast}});  // a page of its own, and the parent's copied to it
  d.append_all();
  const StepRow parent{a, 100, 0, Phase::kPrefillLast};
  EXPECT_NO_THROW(d.begin({parent})) << "alone with its page by now";
  d.append_all();
  EXPECT_EQ(d.cache.stats().host_bytes, static_cast<std::int64_t>(2 * page_bytes()));
  const StepRow last{d.fork(child, 200), 60, 0, Phase::kPrefillLast};
  expect_error<CapacityError>([&] { d.cache.update(d.plan, {&last, 1}); }, "in 1 more pages");
  d.cache.remove(child);
  EXPECT_NO_THROW(d.begin({last}));
}

TEST(HostPressure, RefusesToLoadWhatHasNoRoom) {
  Driver<ClusterKVCache> rich(config_with(0, 0)), poor(config_with(0, 2 * page_bytes()));
  const SequenceId id = rich.add(1);
  rich.prefill(id, 700);
  std::vector<std::byte> bytes;
  rich.cache.save(id, [&](std::span<const std::byte> part) {
    bytes.insert(bytes.end(), part.begin(), part.end());
  });
  std::size_t at = 0;
  const ReadFn read = [&](std::span<std::byte> to) {
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), to.size(), to.begin());
    at += to.size();
    return to.size();
  };
  expect_error<CapacityError>([&] { (void)poor.cache.load(read); }, "expected as many as fit");
  EXPECT_EQ(poor.cache.stats().held_bytes, 0);
  EXPECT_EQ(poor.cache.stats().live_sequences, 0);
}

// ------------------------------------------------------------------------------------- hybrid

/// Of a sequence's budget of 32 rows, both KV heads of the layer that chooses.
std::size_t slots_bytes(int sequences) {
  return static_cast<std::size_t>(sequences) * 32 * 2 * 4 * 2 * 64 * size_of(small_model_dtype);
}

CacheConfig hybrid_config(std::size_t pages) {
  CacheConfig config = config_of(Residency::kHybrid);
  config.store.device_bytes = slots_bytes(config.max_sequences) + pages * page_bytes();
  return config;
}

TEST(Hybrid, TakesTheDeviceFirstThenTheHostStore) {
  Driver<ClusterKVCache> d(hybrid_config(3));
  const SequenceId a = d.add(1), b = d.add(2);
  d.prefill(a, 700);  // three pages
  go_on(d, a, 10);
  const StepStats near = d.cache.stats().total;
  EXPECT_EQ(near.quad_hits + near.quad_misses + near.quads_in_place, 0) << "read where they are";
  EXPECT_EQ(d.cache.stats().host_bytes, 0);
  d.prefill(b, 300);  // two more
  EXPECT_EQ(d.cache.stats().host_bytes, static_cast<std::int64_t>(2 * page_bytes()));
  go_on(d, b, 10);
  const StepStats far = d.cache.stats().total;
  EXPECT_GT(far.quad_hits, 0);
  EXPECT_GT(far.quad_misses, 0);
  go_on(d, a, 10);
  EXPECT_EQ(d.cache.stats().total.copied_bytes, far.copied_bytes);
  // What the device has free again is taken first.
  d.cache.remove(a);
  const SequenceId c = d.add(3);
  d.prefill(c, 300);
  EXPECT_EQ(d.cache.stats().host_bytes, static_cast<std::int64_t>(2 * page_bytes()));
  go_on(d, c, 10);
  EXPECT_EQ(d.cache.stats().total.copied_bytes, far.copied_bytes);
}

TEST(Hybrid, DividesDeviceBytesIntoSlotsAndPages) {
  const auto needs = [](const CacheConfig& config) {
    return ClusterKVCache::memory_needs(config, Backend::kCpu, {});
  };
  const CacheConfig device = config_of(Residency::kDevice), host = config_of(Residency::kHost);
  const std::size_t rows = needs(host).host_bytes;
  for (const std::size_t pages : {0, 1, 5}) {
    EXPECT_EQ(needs(hybrid_config(pages)).host_bytes, rows - pages * page_bytes());
    EXPECT_EQ(needs(hybrid_config(pages)).device_bytes,
              needs(host).device_bytes + pages * page_bytes());
  }
  CacheConfig all = hybrid_config(0);
  all.store.device_bytes = rows;
  EXPECT_EQ(needs(all).host_bytes, 0U);
  EXPECT_EQ(needs(all).device_bytes, needs(device).device_bytes) << "no slots";
  CacheConfig few = hybrid_config(0), few_on_host = host;
  few.store.device_bytes = few_on_host.store.device_bytes = 1;
  EXPECT_EQ(needs(few).device_bytes, needs(few_on_host).device_bytes) << "one slot";
}

/// A host store of one page needs half of the slots: one page more lies on the device.
TEST(Hybrid, PagesTakeWhatSlotsCannotUse) {
  CacheConfig config = hybrid_config(1);
  config.store.host_bytes = page_bytes();
  Driver<ClusterKVCache> d(config);
  d.prefill(d.add(1), 700);
  EXPECT_EQ(d.cache.stats().host_bytes, static_cast<std::int64_t>(page_bytes()));
}

TEST(Hybrid, RefusesWhatNeitherHasRoomFor) {
  CacheConfig config = hybrid_config(1);
  config.store.host_bytes = page_bytes();
  Driver<ClusterKVCache> d(config);
  const SequenceId a = d.add(1), b = d.add(2);
  d.prefill(a, 700);
  const StepRow more{b, 200, 1, Phase::kPrefillLast};
  expect_error<CapacityError>(
      [&] {
        d.cache.update(d.plan, {&more, 1});
      },
      "expected at most 0 (store.host_bytes)");
  d.cache.remove(a);
  EXPECT_NO_THROW(d.step({more}));
}

}  // namespace
}  // namespace clusterkv::testing
