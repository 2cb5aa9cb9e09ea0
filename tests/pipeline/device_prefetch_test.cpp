// SPDX-License-Identifier: Apache-2.0
//
// prefetch() on the CUDA backend: on a device, or on the stand-in for its runtime. Layers of a step are
// enqueued without the host waiting between them, so that recalls run beside other layers.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>

#include "tests/support/captured_step.hpp"
#include "tests/support/device_cache.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {
namespace {

class DevicePrefetchTest : public DeviceTest {};

constexpr PlanLimits kLimits{.max_rows = 4, .max_new_tokens = 1024, .prefetch = true};
constexpr std::size_t kFewSlots = 30'000;  ///< device_bytes: not for all that a step chooses

/// Three layers, the first of them dense.
CacheConfig config_of(std::size_t device_bytes = 0) {
  CacheConfig config = device_config();
  config.model = small_model(3, 4, 2, 64);
  config.model.kv_dtype = DType::kF16;
  config.store.device_bytes = device_bytes;
  return config;
}

enum class Hint : std::uint8_t { kNone, kRight, kWrong };

/// Queries of all layers, and what to say they would be.
struct Queries {
  Queries(Driver<ClusterKVCache>& driver, Hint hint) {
    for (int layer = 0; layer < driver.cache.config().model.num_layers; ++layer) {
      queries.push_back(driver.queries(layer));
      hints.push_back(queries.back());
      if (hint != Hint::kWrong) continue;
      for (float& x : hints.back()) x = -x;
    }
  }
  std::vector<std::vector<float>> queries, hints;
};

void prefetch(Driver<ClusterKVCache>& driver, const Queries& queries, int layer) {
  driver.cache.prefetch(layer, driver.plan,
                        driver.query_view(queries.hints[static_cast<std::size_t>(layer)]),
                        driver.stream_or_own({}));
}

void attend(Driver<ClusterKVCache>& driver, const Queries& queries, int layer, Output& output) {
  const ModelShape& m = driver.cache.config().model;
  const AttentionOut out =
      make_out(output, driver.plan.num_query_tokens(), m.num_q_heads, m.head_dim);
  driver.cache.attend(layer, driver.plan,
                      {driver.query_view(queries.queries[static_cast<std::size_t>(layer)]),
                       {driver.placed(out.out), driver.placed(out.lse)}},
                      driver.stream_or_own({}));
}

/// Each layer is prefetched before the one before it attends.
std::vector<Output> step_with(Driver<ClusterKVCache>& driver, const std::vector<StepRow>& rows,
                              Hint hint) {
  driver.begin(rows);
  const Queries queries(driver, hint);
  const int num_layers = driver.cache.config().model.num_layers;
  std::vector<Output> outputs(static_cast<std::size_t>(num_layers));
  for (int layer = 0; layer < num_layers; ++layer) {
    driver.append(layer);
    if (hint != Hint::kNone && layer + 1 < num_layers) prefetch(driver, queries, layer + 1);
    attend(driver, queries, layer, outputs[static_cast<std::size_t>(layer)]);
  }
  driver.wait();
  return outputs;
}

/// Two sequences and padding; with 16 steps until windows were clustered and read.
Outputs live_with(Driver<ClusterKVCache>& driver, Hint hint, int num_steps = 16) {
  const SequenceId a = driver.add(7);
  driver.prefill(a, 150, 80);
  const SequenceId b = driver.add(8);
  driver.prefill(b, 110);
  Outputs outputs;
  for (int i = 0; i < num_steps; ++i) {
    outputs.push_back(step_with(driver, {{.id = b}, {.id = kNoSequence}, {.id = a}}, hint));
  }
  return outputs;
}

/// What recall did: hits, misses, quads in place, bytes.
std::array<std::int64_t, 4> recalled(const StepStats& stats) {
  return {stats.quad_hits, stats.quad_misses, stats.quads_in_place, stats.copied_bytes};
}

TEST_F(DevicePrefetchTest, ChangesNoAnswer) {
  for (const std::size_t device_bytes : {std::size_t{0}, kFewSlots}) {
    DeviceCache without(config_of(device_bytes));
    const Outputs wanted = live_with(without.driver, Hint::kNone);
    EXPECT_EQ(without.driver.cache.stats().total.quads_in_place > 0, device_bytes > 0);
    for (const auto& [hint, seed] :
         {std::pair{Hint::kRight, 3}, {Hint::kWrong, 0}, {Hint::kWrong, 4}}) {
      set_schedule(static_cast<std::uint64_t>(seed));
      DeviceCache device(config_of(device_bytes), kLimits);
      EXPECT_TRUE(all_same_bits(live_with(device.driver, hint), wanted))
          << device_bytes << " " << static_cast<int>(hint) << " " << seed;
    }
    set_schedule(0);
  }
}

/// Rows on the device are nothing to bring, nor to look up.
TEST_F(DevicePrefetchTest, PassesOverRowsOnTheDevice) {
  const auto quads = [](const DeviceCache& device) {
    const auto counts = recalled(device.driver.cache.stats().total);
    return counts[0] + counts[1];
  };
  CacheConfig config = config_of(900'000);  // slots for all that is chosen, and a page of rows
  config.store.residency = Residency::kHybrid;
  DeviceCache on_host(config_of()), without(config);
  const Outputs wanted = live_with(on_host.driver, Hint::kNone);
  EXPECT_TRUE(all_same_bits(live_with(without.driver, Hint::kNone), wanted));
  EXPECT_GT(quads(without), 0);
  EXPECT_LT(quads(without), quads(on_host));
  for (const Hint hint : {Hint::kRight, Hint::kWrong}) {
    DeviceCache device(config, kLimits);
    EXPECT_TRUE(all_same_bits(live_with(device.driver, hint), wanted)) << static_cast<int>(hint);
    if (hint == Hint::kWrong) continue;  // brings others too
    EXPECT_EQ(quads(device), quads(without));
  }
}

/// With the layer's own queries for a hint, recall finds all that it looks for.
TEST_F(DevicePrefetchTest, BringsWhatTheLayerWillRead) {
  DeviceCache device(config_of(), kLimits), twin(config_of());
  std::array<SequenceId, 2> ids{};
  for (std::size_t i = 0; i < 2; ++i) {
    Driver<ClusterKVCache>& driver = i == 0 ? device.driver : twin.driver;
    ids[i] = driver.add(7);
    driver.prefill(ids[i], 150, 80);
  }
  Driver<ClusterKVCache>& driver = device.driver;
  for (int i = 0; i < 4; ++i) {
    driver.begin({{.id = ids[0]}});
    driver.append_all();
    const Queries queries(driver, Hint::kRight);
    for (const int layer : {0, 1, 2}) prefetch(driver, queries, layer);  // layer 0 is dense
    const auto ahead = recalled(driver.cache.stats().step);
    std::array<Output, 3> outputs;
    for (int layer = 0; layer < 3; ++layer) {
      attend(driver, queries, layer, outputs[static_cast<std::size_t>(layer)]);
    }
    EXPECT_EQ(recalled(driver.cache.stats().step), ahead) << i;
    step_with(twin.driver, {{.id = ids[1]}}, Hint::kNone);
    EXPECT_EQ(recalled(twin.driver.cache.stats().step), ahead) << i;
    EXPECT_GT(i == 0 ? ahead[1] : ahead[0], 0);
  }
}

/// Counts depend on what came first, where slots are few and hints are wrong.
TEST_F(DevicePrefetchTest, RecallWaitsForItsOwnLayer) {
  DeviceCache in_order(config_of(kFewSlots), kLimits);
  live_with(in_order.driver, Hint::kWrong, 4);
  const auto wanted = recalled(in_order.driver.cache.stats().total);
  DeviceCache without(config_of(kFewSlots));
  live_with(without.driver, Hint::kNone, 4);
  EXPECT_NE(recalled(without.driver.cache.stats().total), wanted);
  for (const std::uint64_t seed : {3, 4, 5, 6, 7, 8, 9, 10, 11, 12}) {
    set_schedule(seed);
    DeviceCache device(config_of(kFewSlots), kLimits);
    live_with(device.driver, Hint::kWrong, 4);
    EXPECT_EQ(recalled(device.driver.cache.stats().total), wanted) << seed;
  }
}

/// What was prefetched is not attended: the step ends, or its sequence does.
TEST_F(DevicePrefetchTest, AStepMayEndRightAfterIt) {
  const auto live_through = [](DeviceCache& device, bool prefetches) {
    Driver<ClusterKVCache>& driver = device.driver;
    SequenceId id = driver.add(9);
    driver.prefill(id, 150, 80);
    Outputs outputs;
    std::vector<std::unique_ptr<Queries>> kept;
    for (int i = 0; i < 4; ++i) {
      driver.begin({{.id = id}});
      driver.append_all();
      kept.push_back(std::make_unique<Queries>(driver, Hint::kRight));
      if (prefetches) {
        for (const int layer : {1, 2}) prefetch(driver, *kept.back(), layer);
      }
      if (i % 2 == 1) {  // its pages are the next one's
        driver.cache.remove(id, driver.stream_or_own({}));
        id = driver.add(static_cast<std::uint64_t>(i));
        driver.prefill(id, 200);
      }
      driver.begin({{.id = id}});
      driver.append_all();
      EXPECT_EQ(recalled(driver.cache.stats().step), (std::array<std::int64_t, 4>{})) << i;
      outputs.push_back(driver.decode(id));
      outputs.push_back(driver.decode(id));
    }
    return outputs;
  };
  DeviceCache without(config_of());
  const Outputs wanted = live_through(without, false);
  for (const std::uint64_t seed : {0, 3, 4, 5}) {
    set_schedule(seed);
    DeviceCache device(config_of(), kLimits);
    EXPECT_TRUE(all_same_bits(live_through(device, true), wanted)) << seed;
  }
}

TEST_F(DevicePrefetchTest, APlanThatIsGoneIsDoneWithItsWorkspace) {
  const auto live_through = [](DeviceCache& device, bool prefetches) {
    Driver<ClusterKVCache>& driver = device.driver;
    const SequenceId id = driver.add(7);
    driver.prefill(id, 150, 80);
    driver.begin({{.id = id}});
    driver.append_all();
    driver.wait();
    if (prefetches) {
      const Queries queries(driver, Hint::kRight);
      for (const int layer : {1, 2}) prefetch(driver, queries, layer);
      driver.wait();  // of our stream; the cache prefetches on another
      driver.renew(kLimits);
      const Workspace workspace = driver.workspace();
      const on_device::SideStream other;
      on_device::fill_async(workspace.data, 0xff, workspace.bytes, other.get());
      on_device::wait_for(other.get());
      on_device::wait_for_all();
      const PinnedBytes copy(workspace.bytes);
      on_device::copy_async(copy.data(), workspace.data, workspace.bytes, other.get());
      on_device::wait_for(other.get());
      const auto* bytes = static_cast<const unsigned char*>(copy.data());
      EXPECT_TRUE(std::all_of(bytes, bytes + workspace.bytes,
                              [](unsigned char byte) { return byte == 0xff; }));
    }
    return Outputs{driver.decode(id), driver.decode(id)};
  };
  DeviceCache without(config_of());
  const Outputs wanted = live_through(without, false);
  for (const std::uint64_t seed : {0, 3, 4, 5}) {
    set_schedule(seed);
    DeviceCache device(config_of(), kLimits);
    EXPECT_TRUE(all_same_bits(live_through(device, true), wanted)) << seed;
  }
}

#ifdef CLUSTERKV_SIMT
TEST_F(DevicePrefetchTest, AReplayedStepPrefetches) {
  set_schedule(3);
  constexpr PlanLimits kOfAStep{.max_rows = 3, .max_new_tokens = 3, .prefetch = true};
  for (const std::size_t device_bytes : {std::size_t{0}, kFewSlots}) {
    DeviceCache eager(config_of(device_bytes), kLimits), captured(config_of(device_bytes), kLimits);
    std::array<std::array<SequenceId, 2>, 2> ids{};
    for (std::size_t i = 0; i < 2; ++i) {
      Driver<ClusterKVCache>& driver = i == 0 ? eager.driver : captured.driver;
      for (std::size_t j = 0; j < 2; ++j) {
        ids[i][j] = driver.add(7 + j);
        driver.prefill(ids[i][j], 150);
      }
      driver.renew(kOfAStep);
    }
    std::unique_ptr<CapturedStep> step;
    for (int i = 0; i < 20; ++i) {
      const auto rows = [&](const std::array<SequenceId, 2>& of) -> std::vector<StepRow> {
        if (i % 2 == 0) return {{.id = of[0]}, {.id = kNoSequence}, {.id = of[1]}};
        return {{.id = of[1]}, {.id = of[0]}, {.id = kNoSequence}};
      };
      const auto wanted = step_with(eager.driver, rows(ids[0]), Hint::kRight);
      captured.driver.begin(rows(ids[1]));
      if (step == nullptr) {
        step = std::make_unique<CapturedStep>(captured.driver, captured.stream.get(), true);
      }
      ASSERT_TRUE(same_bits(step->replay(), wanted)) << i;
      ASSERT_EQ(recalled(captured.driver.cache.stats().step),
                recalled(eager.driver.cache.stats().step))
          << i;
    }
  }
}

TEST_F(DevicePrefetchTest, IsInAGraphWithItsLayerOrNotAtAll) {
  DeviceCache device(config_of(), kLimits);
  Driver<ClusterKVCache>& driver = device.driver;
  void* stream = device.stream.get();
  const SequenceId id = driver.add(7);
  driver.prefill(id, 150, 80);
  driver.begin({{.id = id}});
  driver.append_all();
  const Queries queries(driver, Hint::kRight);
  std::array<Output, 3> outputs;
  prefetch(driver, queries, 1);
  ::simt::begin_capture(stream);
  expect_error<StepError>([&] { attend(driver, queries, 1, outputs[1]); }, "records a graph");
  expect_error<StepError>([&] { prefetch(driver, queries, 2); }, "records a graph");
  ::simt::end_capture(stream);
  attend(driver, queries, 1, outputs[1]);
  driver.wait();
  ::simt::begin_capture(stream);
  prefetch(driver, queries, 2);
  EXPECT_THROW(::simt::end_capture(stream), std::runtime_error) << "nobody waits for it";
  driver.begin({{.id = id}});
  const CapturedStep step(driver, stream, true);
  driver.begin({{.id = id}});
  expect_error<StepError>([&] { prefetch(driver, queries, 1); }, "records no graph");
}
#endif

TEST_F(DevicePrefetchTest, TakesScratchWhereThereIsSomethingToBring) {
  PlanLimits without = kLimits;
  without.prefetch = false;
  const auto more = [&](const CacheConfig& config, Backend backend) {
    return ClusterKVCache::memory_needs(config, backend, kLimits).workspace_bytes -
           ClusterKVCache::memory_needs(config, backend, without).workspace_bytes;
  };
  CacheConfig in_place = config_of();
  in_place.store.residency = Residency::kDevice;
  EXPECT_GT(more(config_of(), Backend::kCuda), 0U);
  EXPECT_EQ(more(in_place, Backend::kCuda), 0U);
  EXPECT_EQ(more(config_of(), Backend::kCpu), 0U);
  DeviceCache device(in_place, kLimits), twin(in_place);
  EXPECT_TRUE(all_same_bits(live_with(device.driver, Hint::kWrong, 4),
                            live_with(twin.driver, Hint::kNone, 4)));
}

TEST_F(DevicePrefetchTest, RefusesCallsThatMakeNoSense) {
  DeviceCache device(config_of(), kLimits), without(config_of()), twin(config_of());
  std::array<SequenceId, 3> ids{};
  std::size_t at = 0;
  for (DeviceCache* each : {&device, &without, &twin}) {
    ids[at] = each->driver.add(7);
    each->driver.prefill(ids[at], 150, 80);
    each->driver.begin({{.id = ids[at++]}});
    each->driver.append_all();
  }
  Driver<ClusterKVCache>& driver = device.driver;
  const std::vector<float> query = driver.queries(1);
  const TensorView good = driver.query_view(query);
  const auto call = [&](int layer, const DecodePlan& plan, const TensorView& hint) {
    driver.cache.prefetch(layer, plan, hint, driver.stream_or_own({}));
  };
  for (const int layer : {-1, 3}) {
    expect_error<ShapeError>([&] { call(layer, driver.plan, good); }, "layer: ");
  }
  expect_error<StepError>([&] { call(1, without.driver.plan, good); }, "another object");
  expect_error<StepError>(
      [&] { prefetch(without.driver, Queries(without.driver, Hint::kRight), 1); },
      "limits.prefetch");
  expect_error<BackendUnavailable>([&] { driver.cache.prefetch(1, driver.plan, good, {}); },
                                   "stream");
  TensorView bad = good;
  bad.shape[1] = 5;
  expect_error<ShapeError>([&] { call(1, driver.plan, bad); }, "query_hint");
  bad = good;
  bad.dtype = DType::kI32;
  expect_error<DTypeError>([&] { call(1, driver.plan, bad); }, "query_hint");
  bad = good;
  bad.device = {Device::kHost};
  expect_error<ShapeError>([&] { call(1, driver.plan, bad); }, "query_hint: lies in host memory");
  EXPECT_EQ(recalled(driver.cache.stats().step), (std::array<std::int64_t, 4>{}));
  EXPECT_TRUE(same_bits(driver.decode(ids[0]), twin.driver.decode(ids[2])));
  driver.cache.truncate(ids[0], 150, driver.stream_or_own({}));
  expect_error<StepError>([&] { call(1, driver.plan, good); }, "stale");
}

}  // namespace
}  // namespace clusterkv::testing
