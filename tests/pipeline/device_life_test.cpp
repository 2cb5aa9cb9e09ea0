// SPDX-License-Identifier: Apache-2.0
//
// Forks, cuts and failures of caches on the CUDA backend: on a device, or on the stand-in for its runtime.
#include <gtest/gtest.h>

#include "src/runtime/buffer.hpp"
#include "tests/support/device_cache.hpp"
#include "tests/support/errors.hpp"

#ifdef CLUSTERKV_SIMT
#include <simt/streams.hpp>
#endif

namespace clusterkv::testing {
namespace {

class DeviceLifeTest : public DeviceTest {};

// --------------------------------------------------------------------------- forks and cuts

Outputs go_on(Driver<ClusterKVCache>& driver, SequenceId id, int steps) {
  Outputs outputs;
  for (int i = 0; i < steps; ++i) outputs.push_back(driver.decode(id));
  return outputs;
}

SequenceId begin_with(Driver<ClusterKVCache>& driver, int steps) {
  const SequenceId id = driver.add(7);
  driver.prefill(id, 150, 80);
  go_on(driver, id, steps);
  return id;
}

TEST_F(DeviceLifeTest, AForkAndItsParentAreTwins) {
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{3}, kSideStreamsLast}) {
    set_schedule(seed);
    for (const int steps : {1, 13}) {  // after 13 a window is being clustered
      // A child's page is copied from the device's only one to the host store.
      DeviceCache device(device_config(seed == 0 ? Residency::kHost : Residency::kHybrid));
      DeviceCache twin(device_config());
      const SequenceId parent = begin_with(device.driver, steps);
      const SequenceId other = begin_with(twin.driver, steps);
      const SequenceId child = device.driver.fork(parent);
      const Outputs wanted = go_on(twin.driver, other, 16);
      EXPECT_TRUE(all_same_bits(go_on(device.driver, child, 16), wanted)) << seed << " " << steps;
      const SequenceId late = device.driver.fork(child, 150);
      EXPECT_TRUE(all_same_bits(go_on(device.driver, parent, 16), wanted)) << seed << " " << steps;
      device.driver.cache.remove(child, device.driver.stream_or_own({}));
      EXPECT_EQ(device.driver.cache.length(late), 150);
    }
  }
}

/// With room for everything attention is exact, whatever the clusters, so that the CPU says what is right.
TEST_F(DeviceLifeTest, ACutLeavesTheTokensBeforeIt) {
  CacheConfig config = device_config(Residency::kHybrid);
  config.store.device_bytes = 4'800'000;
  config.select.dense_threshold = 0;
  config.select.budget_tokens = 512;
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{3}, kSideStreamsLast}) {
    set_schedule(seed);
    for (const int length : {151, 100, 5}) {
      DeviceCache device(config);
      auto host = host_cache(config);
      const int steps = length == 100 ? 0 : 15;  // a prompt's segments may still be clustered
      const SequenceId id = begin_with(device.driver, steps);
      const SequenceId other = begin_with(host, steps);
      const SequenceId fork = device.driver.fork(id, length);
      device.driver.cache.truncate(id, length, device.driver.stream_or_own({}));
      host.cache.truncate(other, length);
      const Outputs wanted = go_on(host, other, 14);
      const Outputs outputs = go_on(device.driver, id, 14);
      EXPECT_LT(mean_difference(outputs, wanted), 2e-3) << seed << " " << length;
      EXPECT_TRUE(all_same_bits(go_on(device.driver, fork, 14), outputs)) << seed << " " << length;
    }
  }
}

TEST_F(DeviceLifeTest, AForkOfAPartIsACut) {
  DeviceCache device(device_config());
  const SequenceId id = begin_with(device.driver, 2);
  const SequenceId fork = device.driver.fork(id, 100);
  device.driver.cache.truncate(id, 100, device.driver.stream_or_own({}));
  const SequenceId again = device.driver.fork(id);
  const Outputs wanted = go_on(device.driver, id, 2);
  EXPECT_TRUE(all_same_bits(go_on(device.driver, fork, 2), wanted));
  EXPECT_TRUE(all_same_bits(go_on(device.driver, again, 2), wanted));
}

/// The fork's first segment begins in the page that the parent's last one is being stored to.
TEST_F(DeviceLifeTest, AForkIsSealedRightAfterItsParent) {
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{3}, kSideStreamsLast}) {
    set_schedule(seed);
    DeviceCache device(device_config()), twin(device_config());
    const auto live_on = [](Driver<ClusterKVCache>& driver, bool forks) {
      const SequenceId id = driver.add(7);
      driver.prefill(id, 150, 150);
      const SequenceId child = forks ? driver.fork(id) : id;
      driver.begin({{child, 40, 1, Phase::kPrefillLast}});
      driver.append_all();
      return go_on(driver, child, 3);
    };
    EXPECT_TRUE(all_same_bits(live_on(device.driver, true), live_on(twin.driver, false))) << seed;
  }
}

TEST_F(DeviceLifeTest, ForksMayComeAndGoBetweenSteps) {
  DeviceCache device(device_config()), twin(device_config());
  const SequenceId id = begin_with(device.driver, 13);
  const SequenceId other = begin_with(twin.driver, 13);
  for (int i = 0; i < 600; ++i) {
    device.driver.cache.remove(device.driver.fork(id), device.driver.stream_or_own({}));
  }
  EXPECT_TRUE(all_same_bits(go_on(device.driver, id, 6), go_on(twin.driver, other, 6)));
}

// ------------------------------------------------------------------------------- save, load

using Bytes = std::vector<std::byte>;

Bytes save(Driver<ClusterKVCache>& driver, SequenceId id) {
  Bytes bytes;
  driver.cache.save(
      id,
      [&](std::span<const std::byte> part) { bytes.insert(bytes.end(), part.begin(), part.end()); },
      driver.stream_or_own({}));
  return bytes;
}

SequenceId load(Driver<ClusterKVCache>& driver, const Bytes& bytes) {
  std::size_t at = 0;
  const SequenceId id = driver.cache.load(
      [&](std::span<std::byte> to) {
        const std::size_t count = std::min(to.size(), bytes.size() - at);
        std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), count, to.begin());
        at += count;
        return count;
      },
      driver.stream_or_own({}));
  driver.reseed(id, 7);
  return id;
}

TEST_F(DeviceLifeTest, ARestoredSequenceHasTheSameBits) {
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{3}, kSideStreamsLast}) {
    set_schedule(seed);
    for (const int steps : {0, 13}) {  // after 13 a window is being clustered
      DeviceCache other(device_config(seed == 3 ? Residency::kHybrid : Residency::kDevice));
      begin_with(other.driver, 3);  // other pages are free
      DeviceCache device(device_config());
      const SequenceId id = begin_with(device.driver, steps);
      const Bytes bytes = save(device.driver, id);
      const SequenceId back = load(other.driver, bytes);
      const SequenceId beside = load(device.driver, bytes);
      EXPECT_EQ(save(other.driver, back), bytes) << seed << " " << steps;
      const Outputs wanted = go_on(device.driver, id, 16);
      EXPECT_TRUE(all_same_bits(go_on(other.driver, back, 16), wanted)) << seed << " " << steps;
      EXPECT_TRUE(all_same_bits(go_on(device.driver, beside, 16), wanted)) << seed << " " << steps;
    }
  }
}

/// Clusters come along, so choices are the same, though the backends would not cluster alike.
TEST_F(DeviceLifeTest, ASequenceMovesFromBackendToBackend) {
  CacheConfig config = device_config();
  config.cluster.window_tokens = 100;
  DeviceCache device(config), again(config);
  auto host = host_cache(config);
  const SequenceId id = begin_with(device.driver, 2);
  const Bytes bytes = save(device.driver, id);
  const SequenceId moved = load(host, bytes);
  EXPECT_EQ(save(host, moved), bytes);
  const SequenceId back = load(again.driver, save(host, moved));
  const Outputs wanted = go_on(device.driver, id, 8);
  EXPECT_TRUE(all_same_bits(go_on(again.driver, back, 8), wanted));
  const Outputs outputs = go_on(host, moved, 8);
  for (std::size_t step = 0; step < wanted.size(); ++step) {
    for (std::size_t layer = 0; layer < wanted[step].size(); ++layer) {
      EXPECT_LT(relative_difference(outputs[step][layer].out, wanted[step][layer].out), 2e-3);
    }
  }
}

/// The same clusters: each step finds, misses, reads in place and leaves to the tail what the CPU's does.
TEST_F(DeviceLifeTest, HitsAreThoseOfTheCpu) {
  for (const Retention retention : {Retention::kLru, Retention::kRetainSteps}) {
    for (const int transfer_tokens : {0, 12}) {
      const bool is_hybrid = retention == Retention::kLru && transfer_tokens > 0;
      CacheConfig config = device_config(is_hybrid ? Residency::kHybrid : Residency::kHost);
      config.cluster.window_tokens = 100;
      if (!is_hybrid) config.store.device_bytes = 30000;
      config.store.retention = retention;
      config.store.misses = transfer_tokens > 0 ? Misses::kEstimateMisses : Misses::kCopyMisses;
      config.store.transfer_tokens = transfer_tokens;
      DeviceCache maker(config), device(config);
      auto host = host_cache(config);
      const Bytes bytes = save(maker.driver, begin_with(maker.driver, 2));
      load(device.driver, bytes);  // has the page that a hybrid cache has on the device
      load(host, bytes);
      const SequenceId there = load(device.driver, bytes), here = load(host, bytes);
      for (int i = 0; i < 40; ++i) {
        device.driver.decode(there);
        host.decode(here);
        const StepStats got = device.driver.cache.stats().step, wanted = host.cache.stats().step;
        ASSERT_EQ(got.quad_hits, wanted.quad_hits) << i;
        ASSERT_EQ(got.quad_misses, wanted.quad_misses) << i;
        ASSERT_EQ(got.quads_in_place, wanted.quads_in_place) << i;
        ASSERT_EQ(got.copied_bytes, wanted.copied_bytes) << i;
        ASSERT_EQ(got.selected_clusters, wanted.selected_clusters) << i;
        ASSERT_EQ(got.selected_tokens, wanted.selected_tokens) << i;
        ASSERT_EQ(got.estimated_clusters, wanted.estimated_clusters) << i;
        ASSERT_EQ(got.estimated_tokens, wanted.estimated_tokens) << i;
      }
      const StepStats total = host.cache.stats().total;
      EXPECT_GT(total.quad_hits, 100);
      EXPECT_GT(total.quad_misses, is_hybrid ? 30 : 100);
      EXPECT_EQ(total.estimated_clusters > 0, transfer_tokens > 0);
    }
  }
}

TEST_F(DeviceLifeTest, DamagedBytesAreRefusedAndLeaveNothing) {
  DeviceCache device(device_config()), twin(device_config());
  const SequenceId id = begin_with(device.driver, 13);
  const SequenceId other = begin_with(twin.driver, 13);
  const Bytes bytes = save(device.driver, id);
  const CacheStats before = device.driver.cache.stats();
  for (int i = 0; i < 60; ++i) {
    Bytes damaged = bytes;
    const std::size_t at = bytes.size() * static_cast<std::size_t>(i) / 60;
    if (i % 2 == 0) {
      damaged[at] ^= std::byte{0x10};
    } else {
      damaged.resize(at);
    }
    EXPECT_THROW(load(device.driver, damaged), FormatError) << at;
  }
  EXPECT_EQ(device.driver.cache.stats().held_bytes, before.held_bytes);
  EXPECT_TRUE(all_same_bits(go_on(device.driver, id, 14), go_on(twin.driver, other, 14)));
}

// -------------------------------------------------------------------------------- failures

/// Has room for some allocations, and counts what is not given back.
class ScarceMemory final : public MemoryResource {
 public:
  explicit ScarceMemory(int allocations) : left(allocations) {}
  void* allocate(std::size_t bytes, std::size_t alignment, Device device) override {
    if (left == 0) return nullptr;
    --left;
    ++held;
    return on_device::device_memory().allocate(bytes, alignment, device);
  }
  void deallocate(void* data, std::size_t bytes, std::size_t alignment,
                  Device device) noexcept override {
    --held;
    on_device::device_memory().deallocate(data, bytes, alignment, device);
  }
  int left;
  int held = 0;
};

#ifdef CLUSTERKV_SIMT
/// Is given memory back when nothing uses it any more.
class QuietMemory final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t alignment, Device device) override {
    return on_device::device_memory().allocate(bytes, alignment, device);
  }
  void deallocate(void* data, std::size_t bytes, std::size_t alignment,
                  Device device) noexcept override {
    EXPECT_TRUE(::simt::is_idle());
    on_device::device_memory().deallocate(data, bytes, alignment, device);
  }
};

TEST_F(DeviceLifeTest, ACacheEndsWhenItsWorkIsDone) {
  constexpr PlanLimits kLimits{.max_rows = 1, .max_new_tokens = 50};
  const MemoryNeeds needs = ClusterKVCache::memory_needs(device_config(), Backend::kCuda, kLimits);
  MemoryResource& memory = on_device::device_memory();
  const runtime::Buffer scratch(memory, needs.workspace_bytes, "workspace", {Device::kCuda});
  const runtime::Buffer pinned(memory, needs.workspace_pinned_bytes, "tables", {Device::kPinned});
  const runtime::Buffer rows(memory, 50 * 2 * 64 * 2, "keys and values", {Device::kCuda});
  const on_device::SideStream engine;
  const Stream stream{Backend::kCuda, engine.get(), nullptr};
  on_device::fill_async(rows.data(), 0, rows.bytes(), engine.get());
  TensorView tensor = contiguous_view(rows.data(), DType::kF16, {50, 2, 64});
  tensor.device = {Device::kCuda};
  QuietMemory quiet;
  {
    ClusterKVCache cache(device_config(), {.backend = Backend::kCuda, .memory = &quiet});
    const StepRow row{cache.add_sequence(), 50, 0, Phase::kPrefill};
    const DecodePlan plan =
        cache.plan({&row, 1}, kLimits,
                   {scratch.data(), scratch.bytes(), pinned.data(), pinned.bytes()}, stream);
    for (const int layer : {0, 1}) cache.append(layer, plan, tensor, tensor, stream);
  }
  EXPECT_TRUE(::simt::is_idle());
}
#endif

TEST_F(DeviceLifeTest, AnyAllocationOfTheConstructorMayFail) {
  const CacheConfig config = device_config();
  bool succeeded = false;
  int allocations = 0;
  for (; !succeeded; ++allocations) {
    ScarceMemory memory(allocations);
    try {
      const ClusterKVCache cache(config, {.backend = Backend::kCuda, .memory = &memory});
      succeeded = true;
    } catch (const OutOfMemory&) {
      EXPECT_EQ(memory.left, 0);
    }
    EXPECT_EQ(memory.held, 0) << allocations;
  }
  EXPECT_GT(allocations, 5);
}

TEST_F(DeviceLifeTest, APlanWithoutMemoryChangesNothing) {
  CacheConfig config = device_config();
  config.cluster.segment_tokens = 0;  // a prompt is clustered whole, and wants scratch for that
  config.cluster.window_tokens = 1;
  config.cluster.tokens_per_cluster = 1;
  const auto decode_after = [&](int allocations) {
    ScarceMemory memory(allocations);
    OnDevice<ClusterKVCache> device(config, {4, 1024, 0}, memory);
    Driver<ClusterKVCache>& driver = device.driver;
    const SequenceId id = driver.add(7);
    const StepRow prompt{id, 900, 0, Phase::kPrefillLast};
    if (memory.left == 0) {
      expect_error<OutOfMemory>([&] { driver.begin({prompt}); }, "clustering scratch");
      EXPECT_EQ(driver.cache.length(id), 0);
      memory.left = 1;
    }
    driver.prefill(id, 900);
    driver.decode(id);
    EXPECT_EQ(memory.left, 0) << "the prompt took no memory";
    return driver.decode(id);
  };
  ScarceMemory counted(1000);
  { const OnDevice<ClusterKVCache> device(config, {4, 1024, 0}, counted); }
  const int constructor = 1000 - counted.left;
  EXPECT_TRUE(same_bits(decode_after(constructor), decode_after(constructor + 1)));
}

#ifdef CLUSTERKV_SIMT
TEST_F(DeviceLifeTest, AFailedCallOfTheRuntimeIsATypedError) {
  DeviceCache never(device_config());
  const Outputs wanted = live(never.driver);
  int failed = 0;
  for (int n = 1; n < 500; n += 1 + n / 4) {
    {
      DeviceCache device(device_config());
      ::simt::fail_at(n);
      try {
        live(device.driver);
      } catch (const CudaError&) {
        ++failed;
      }
    }
    ::simt::fail_at(0);
  }
  EXPECT_GT(failed, 10);
  // Nothing of it is left in what is shared.
  DeviceCache after(device_config());
  EXPECT_TRUE(all_same_bits(live(after.driver), wanted));
}
#endif

}  // namespace
}  // namespace clusterkv::testing
