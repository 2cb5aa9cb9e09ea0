// SPDX-License-Identifier: Apache-2.0
//
// ClusterKVCache on the CUDA backend: on a device, or on the stand-in for its runtime and the executor.
// Work is under way while the host goes on, so whatever is read or overwritten too early shows.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <set>

#include "kernels/common/numeric.hpp"
#include "tests/pipeline/query_block.hpp"
#include "tests/pipeline/sink_logits.hpp"
#include "tests/support/captured_step.hpp"
#include "tests/support/device_cache.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {
namespace {

class DeviceCacheTest : public DeviceTest {};

TEST_F(DeviceCacheTest, EverythingThroughTheSparsePathIsDenseAttention) {
  CacheConfig config = device_config();
  config.select.dense_threshold = 0;
  config.select.budget_tokens = 512;
  for (const float softcap : {0.0F, 2.0F}) {
    config.model.logit_softcap = softcap;
    config.model.value_dim = softcap > 0 ? 96 : 0;
    DeviceCache device(config);
    CacheConfig dense = config;
    dense.select.dense_layers = 2;
    auto host = host_cache(dense);
    EXPECT_LT(mean_difference(live(device.driver), live(host)), 2e-3);
  }
}

TEST_F(DeviceCacheTest, ErrsAsTheCpuDoes) {
  for (const float softcap : {0.0F, 4.0F}) {
    CacheConfig config = device_config();
    config.model.logit_softcap = softcap;
    config.model.value_dim = softcap > 0 ? 128 : 0;
    CacheConfig dense = config;
    dense.select.dense_layers = 2;
    DeviceCache device(config);
    auto host = host_cache(config);
    auto exact = host_cache(dense);
    const Outputs wanted = live(exact);
    const double error = mean_difference(live(host), wanted);
    EXPECT_NEAR(mean_difference(live(device.driver), wanted), error, 0.05 * error) << softcap;
  }
}

TEST_F(DeviceCacheTest, SameBitsWhereverRowsLie) {
  DeviceCache host(device_config(Residency::kHost));
  DeviceCache device(device_config(Residency::kDevice));
  CacheConfig few = device_config(Residency::kHost);
  few.store.device_bytes = 8'000;  // quads without a slot are read in place
  DeviceCache small(few);
  const Outputs wanted = live(host.driver);
  EXPECT_TRUE(all_same_bits(live(device.driver), wanted));
  EXPECT_TRUE(all_same_bits(live(small.driver), wanted));
  EXPECT_GT(host.driver.cache.stats().total.quad_hits, 0);
  EXPECT_EQ(host.driver.cache.stats().total.quads_in_place, 0);
  EXPECT_GT(small.driver.cache.stats().total.quads_in_place, 0);
}

TEST_F(DeviceCacheTest, AHybridTakesItsPagesOnTheDeviceFirst) {
  DeviceCache host(device_config(Residency::kHost));
  DeviceCache hybrid(device_config(Residency::kHybrid));
  const Outputs wanted = live(host.driver);
  EXPECT_TRUE(all_same_bits(live(hybrid.driver), wanted));
  EXPECT_EQ(hybrid.driver.cache.stats().total.copied_bytes, 0);
  EXPECT_TRUE(all_same_bits(live(hybrid.driver), wanted)) << "in the host store";
  EXPECT_EQ(hybrid.driver.cache.stats().total.copied_bytes,
            host.driver.cache.stats().total.copied_bytes);
}

TEST_F(DeviceCacheTest, SameBitsInAnyOrderOfStreams) {
  DeviceCache in_order(device_config());
  const Outputs wanted = live(in_order.driver);
  for (const std::uint64_t seed : {3, 4}) {
    set_schedule(seed);
    DeviceCache random(device_config());
    EXPECT_TRUE(all_same_bits(live(random.driver), wanted)) << seed;
  }
}

TEST_F(DeviceCacheTest, SameBitsAloneAndInABatch) {
  DeviceCache one(device_config());
  const Outputs wanted = live(one.driver);
  DeviceCache many(device_config());
  Driver<ClusterKVCache>& driver = many.driver;
  const SequenceId other = driver.add(8);
  driver.prefill(other, 180);
  const SequenceId id = driver.add(7);
  driver.prefill(id, 150, 80);
  for (const auto& step : wanted) {
    const auto batch = driver.step({{.id = other}, {.id = kNoSequence}, {.id = id}});
    for (std::size_t layer = 0; layer < batch.size(); ++layer) {
      EXPECT_TRUE(same_bits({output_row(batch[layer], 2, 4)}, {step[layer]}));
      const Output padding = output_row(batch[layer], 1, 4);
      EXPECT_EQ(padding.out, std::vector<float>(padding.out.size(), 0.0F));
      EXPECT_EQ(padding.lse, std::vector<float>(padding.lse.size(), -INFINITY));
    }
  }
}

TEST_F(DeviceCacheTest, CountsAreThoseOfTheCpu) {
  const CacheConfig config = device_config();
  DeviceCache device(config);
  auto host = host_cache(config);
  for (Driver<ClusterKVCache>* driver : {&device.driver, &host}) {
    const SequenceId id = driver->add(8);
    driver->prefill(id, 180);
    live(*driver);
    driver->begin({{.id = id}});  // still under way when it is counted
  }
  const CacheStats a = device.driver.cache.stats();
  const CacheStats b = host.cache.stats();
  for (const auto& [mine, theirs] : {std::pair{a.total, b.total}, std::pair{a.step, b.step}}) {
    EXPECT_EQ(mine.selections, theirs.selections);
    EXPECT_EQ(mine.dense_selections, theirs.dense_selections);
    EXPECT_EQ(mine.attended_tokens, theirs.attended_tokens);
    EXPECT_EQ(mine.selected_tokens, theirs.selected_tokens);
    EXPECT_EQ(mine.pending_tokens, theirs.pending_tokens);
    EXPECT_EQ(mine.row_bytes, theirs.row_bytes);
    EXPECT_EQ(mine.estimates, theirs.estimates);
    EXPECT_NEAR(mine.estimated_mass, theirs.estimated_mass, 0.05 * theirs.estimated_mass + 0.1);
  }
  EXPECT_EQ(a.kmeans_runs, b.kmeans_runs);
  EXPECT_EQ(a.kmeans_tokens, b.kmeans_tokens);
  EXPECT_NEAR(static_cast<double>(a.clusters), static_cast<double>(b.clusters), 5.0);
}

TEST_F(DeviceCacheTest, RowsComeBackInTokenOrder) {
  CacheConfig config = device_config();
  config.model.value_dim = 96;
  DeviceCache device(config);
  Driver<ClusterKVCache>& driver = device.driver;
  const SequenceId id = driver.add(7);
  driver.prefill(id, 150, 80);
  driver.decode(id);
  for (const auto& [first, last] : {std::pair{0, 151}, std::pair{3, 9}, std::pair{80, 140}}) {
    for (int layer = 0; layer < 2; ++layer) {
      const auto vectors = static_cast<std::size_t>((last - first) * 2);
      std::vector<float> key(vectors * 64), value(vectors * 96);
      driver.cache.read_rows(layer, id, first, last, driver.placed(view3(key, last - first, 2, 64)),
                             driver.placed(view3(value, last - first, 2, 96)),
                             driver.stream_or_own({}));
      driver.wait();
      for (const auto& [got, all] : {std::pair{&key, driver.all_keys(id, layer)},
                                     std::pair{&value, driver.all_values(id, layer)}}) {
        const std::size_t begin = static_cast<std::size_t>(first) * 2 * (got->size() / vectors);
        for (std::size_t i = 0; i < got->size(); ++i) {
          const float stored = all[begin + i];
          ASSERT_EQ((*got)[i], f16_to_float(float_to_f16(stored))) << layer << " " << i;
        }
      }
    }
  }
}

TEST_F(DeviceCacheTest, AChoiceGivenBackIsTheSameAttention) {
  DeviceCache device(device_config());
  Driver<ClusterKVCache>& driver = device.driver;
  const SequenceId id = driver.add(7);
  driver.prefill(id, 150, 80);
  driver.begin({{.id = id}});
  driver.append_all();
  for (int layer = 0; layer < 2; ++layer) {
    const std::vector<float> query = driver.queries(layer);
    const Output wanted = static_cast<Harness<ClusterKVCache>&>(driver).attend(layer, query);
    const Selection selection = driver.select(layer);
    Output output;
    AttentionOut out = make_out(output, 1, 4, 64);
    driver.cache.attend_selected(
        layer, driver.plan, selection,
        {driver.query_view(query), {driver.placed(out.out), driver.placed(out.lse)}},
        driver.stream_or_own({}));
    driver.wait();
    EXPECT_TRUE(same_bits({output}, {wanted})) << layer;
    const auto positions = driver.positions(layer, selection);
    for (const auto& list : positions[0]) {
      const std::set<std::int32_t> tokens(list.begin(), list.end());
      EXPECT_EQ(tokens.size(), list.size());
      EXPECT_EQ(*tokens.rbegin(), 150);
      EXPECT_EQ(*tokens.begin(), 0);
      EXPECT_EQ(list.size() == 151U, layer == 0) << "only layer 0 is dense";
    }
  }
}

TEST_F(DeviceCacheTest, RemovedSequencesLeaveNothingBehind) {
  DeviceCache fresh(device_config());
  const Outputs wanted = live(fresh.driver);
  DeviceCache used(device_config());
  const SequenceId before = used.driver.add(9);
  used.driver.prefill(before, 300);
  for (int i = 0; i < 5; ++i) used.driver.decode(before);
  used.driver.cache.remove(before, used.driver.stream_or_own({}));
  EXPECT_TRUE(all_same_bits(live(used.driver), wanted));
}

TEST_F(DeviceCacheTest, APlanThatIsGoneIsDoneWithItsWorkspace) {
  const auto live_with = [](DeviceCache& device, bool renew) {
    Driver<ClusterKVCache>& driver = device.driver;
    const SequenceId id = driver.add(7);
    driver.prefill(id, 150, 80);
    if (renew) {
      driver.wait();  // of our stream; segments are clustered on another
      driver.renew({4, 1024, 0});
      const Workspace workspace = driver.workspace();
      const on_device::SideStream other;
      on_device::fill_async(workspace.data, 0xff, workspace.bytes, other.get());
      on_device::wait_for(other.get());
    }
    driver.begin({{.id = id}});
    driver.append_all();
    if (renew) driver.renew({3, 512, 0});  // what the last one wrote is still to be copied
    return Outputs{driver.decode(id), driver.decode(id)};
  };
  DeviceCache one(device_config());
  const Outputs wanted = live_with(one, false);
  for (const std::uint64_t seed : {0, 3, 4}) {
    set_schedule(seed);
    DeviceCache many(device_config());
    EXPECT_TRUE(all_same_bits(live_with(many, true), wanted)) << seed;
  }
}

TEST_F(DeviceCacheTest, ABlockOfQueriesGivesEachTokenWhatItGetsAlone) {
  expect_tokens_alone_agree<DeviceCache>(device_config(), 5);
}

TEST_F(DeviceCacheTest, BlocksOfQueriesAreTheSameInARaggedBatch) {
  expect_ragged_batches_agree<DeviceCache>(device_config());
}

TEST_F(DeviceCacheTest, LearnedSinksTakeTheirShare) {
  for (const int value_dim : {0, 80}) {
    CacheConfig config = device_config();
    config.model.value_dim = value_dim;
    expect_sinks_take_their_share<DeviceCache>(config);
  }
}

TEST_F(DeviceCacheTest, PaperPresetRuns) {
  CacheConfig config = CacheConfig::paper(small_model(1, 4, 2, 64));
  config.model.kv_dtype = DType::kF16;
  config.select.dense_layers = 0;
  config.select.budget_tokens = 128;
  config.store.residency = Residency::kHost;
  config.max_sequences = 1;
  config.max_tokens = 4096;
  DeviceCache device(config, {1, 4096, 0});
  auto host = Driver<ClusterKVCache>(config, {1, 4096, 0});
  const SequenceId on_gpu = device.driver.add(7);
  const SequenceId on_cpu = host.add(7);
  device.driver.prefill(on_gpu, 2500, 2500);  // larger than what one block of threads clusters
  host.prefill(on_cpu, 2500, 2500);
  device.driver.decode(on_gpu);
  host.decode(on_cpu);
  const auto a = device.driver.decode(on_gpu);
  const auto b = host.decode(on_cpu);
  EXPECT_LT(relative_difference(a[0].out, b[0].out), 0.3);
}

#ifdef CLUSTERKV_SIMT
TEST_F(DeviceCacheTest, TheHostMayNotTouchDeviceMemory) {
  DeviceCache device(device_config());
  Driver<ClusterKVCache>& driver = device.driver;
  driver.prefill(driver.add(7), 150);
  const auto* bytes = static_cast<const volatile unsigned char*>(driver.workspace().data);
  EXPECT_DEATH(static_cast<void>(*bytes), "");
}

TEST_F(DeviceCacheTest, AReplayedStepIsTheStep) {
  set_schedule(3);  // also of what a plan that is gone left behind
  const PlanLimits limits{3, 400, 0};
  const PlanLimits of_a_step{3, 3, 0};
  CacheConfig config = device_config();
  config.max_tokens = 4096;
  DeviceCache eager(config, limits);
  DeviceCache captured(config, limits);
  std::vector<std::vector<SequenceId>> ids(2);
  for (std::size_t i = 0; i < 2; ++i) {
    Driver<ClusterKVCache>& driver = i == 0 ? eager.driver : captured.driver;
    for (const std::uint64_t seed : {7, 8, 9}) {
      ids[i].push_back(driver.add(seed));
      driver.prefill(ids[i].back(), 100 + 40 * static_cast<int>(seed - 7));
    }
    driver.renew(of_a_step);
  }
  std::unique_ptr<CapturedStep> step;
  // CLUSTERKV_REPLAYS=1000 takes two minutes on one core.
  const char* replays = std::getenv("CLUSTERKV_REPLAYS");
  const int count = replays == nullptr ? 100 : std::atoi(replays);
  for (int i = 0; i < count; ++i) {
    // Members come and go, and change places.
    const auto rows = [&](const std::vector<SequenceId>& of) -> std::vector<StepRow> {
      const SequenceId none = kNoSequence;
      if (i % 3 == 0) return {{.id = of[0]}, {.id = of[1]}, {.id = of[2]}};
      if (i % 3 == 1) return {{.id = of[2]}, {.id = none}, {.id = of[0]}};
      return {{.id = none}, {.id = none}, {.id = of[1]}};
    };
    const auto wanted = eager.driver.step(rows(ids[0]));
    captured.driver.begin(rows(ids[1]));
    if (step == nullptr) {
      step = std::make_unique<CapturedStep>(captured.driver, captured.stream.get());
    }
    ASSERT_TRUE(same_bits(step->replay(), wanted)) << i;
  }
}
#endif

/// Counts what it hands on.
class CountingMemory final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t alignment, Device device) override {
    taken[device.kind] += bytes;
    return on_device::device_memory().allocate(bytes, alignment, device);
  }
  void deallocate(void* data, std::size_t bytes, std::size_t alignment,
                  Device device) noexcept override {
    on_device::device_memory().deallocate(data, bytes, alignment, device);
  }
  std::size_t taken[3] = {};
};

TEST_F(DeviceCacheTest, TakesTheMemoryThatItSays) {
  for (const Residency residency : {Residency::kHost, Residency::kDevice, Residency::kHybrid}) {
    const CacheConfig config = device_config(residency);
    CountingMemory memory;
    const ClusterKVCache cache(config, {.backend = Backend::kCuda, .memory = &memory});
    const MemoryNeeds needs =
        ClusterKVCache::memory_needs(config, Backend::kCuda, {.max_rows = 1, .max_new_tokens = 1});
    EXPECT_EQ(memory.taken[Device::kCuda], needs.device_bytes);
    EXPECT_EQ(memory.taken[Device::kPinned], needs.pinned_bytes);
    EXPECT_EQ(memory.taken[Device::kHost], 0U);
  }
}

// ------------------------------------------------------------------------------- bad calls

TEST_F(DeviceCacheTest, RefusesWhatItCannotRun) {
  const Resources resources{.backend = Backend::kCuda, .memory = &on_device::device_memory()};
  CacheConfig config = device_config();
  config.model.kv_dtype = DType::kF32;
  expect_error<ConfigError>([&] { ClusterKVCache(config, resources); }, "kv_dtype");
  EXPECT_FALSE(ClusterKVCache::supports(config, Backend::kCuda).ok);
  config = device_config();
  config.check_finite = true;
  expect_error<ConfigError>([&] { ClusterKVCache(config, resources); }, "check_finite");
}

TEST_F(DeviceCacheTest, RefusesHostTensorsAndStreams) {
  DeviceCache device(device_config());
  Driver<ClusterKVCache>& driver = device.driver;
  const SequenceId id = driver.add(7);
  const std::vector<StepRow> rows = {{.id = id}};
  expect_error<BackendUnavailable>(
      [&] {
        (void)driver.cache.plan(rows, {1, 1, 0}, driver.workspace(), {});
      },
      "stream");
  driver.begin(rows);
  const std::vector<float> row(2 * 64);
  expect_error<ShapeError>(
      [&] {
        driver.cache.append(0, driver.plan, view3(row, 1, 2, 64), view3(row, 1, 2, 64),
                            driver.stream_or_own({}));
      },
      "key: lies in host memory");
  driver.append_all();
  EXPECT_EQ(driver.cache.length(id), 1);
}

}  // namespace
}  // namespace clusterkv::testing
