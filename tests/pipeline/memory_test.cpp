// SPDX-License-Identifier: Apache-2.0
//
// Where memory comes from, how much of it, when, and what happens when there is none.
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <thread>

#include "tests/pipeline/news.hpp"
#include "tests/support/cache_fixture.hpp"
#include "tests/support/errors.hpp"
#include "tests/support/lock_count.hpp"

namespace clusterkv::testing {
namespace {

/// Counts, checks what is given back, and has nothing left after `allowed` allocations.
class Ledger final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t alignment, Device device) override {
    if (allocations_ == allowed) return nullptr;
    ++allocations_;
    EXPECT_EQ(device.kind, Device::kHost) << "the CPU backend has nothing else";
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* data = std::aligned_alloc(alignment, rounded);
    std::memset(data, 0xff, rounded);  // NaN: nothing may rely on zeros
    live_[data] = {bytes, alignment};
    live_bytes += bytes;
    return data;
  }
  void deallocate(void* data, std::size_t bytes, std::size_t alignment, Device) noexcept override {
    const auto found = live_.find(data);
    ASSERT_NE(found, live_.end()) << "given back what was not given";
    EXPECT_EQ(found->second.first, bytes);
    EXPECT_EQ(found->second.second, alignment);
    live_.erase(found);
    live_bytes -= bytes;
    std::free(data);
  }
  [[nodiscard]] int allocations() const { return allocations_; }
  [[nodiscard]] bool all_returned() const { return live_.empty(); }

  int allowed = -1;  ///< -1: any number
  std::size_t live_bytes = 0;

 private:
  int allocations_ = 0;
  std::map<void*, std::pair<std::size_t, std::size_t>> live_;
};

enum class Place : std::uint8_t { kDevice, kHost, kHybrid, kFile };

CacheConfig config_of(Place place) {
  CacheConfig config = small_config(small_model(2, 6, 2));
  config.store.residency = place == Place::kDevice   ? Residency::kDevice
                           : place == Place::kHybrid ? Residency::kHybrid
                                                     : Residency::kHost;
  if (place == Place::kHybrid) config.store.device_bytes = 900000;
  if (place == Place::kFile)
    config.store.cold_path = std::filesystem::temp_directory_path().string();
  config.select.dense_layers = 1;
  return config;
}

Resources with(MemoryResource& memory) {
  return {Backend::kCpu, nullptr, &memory};
}

std::size_t store_bytes(const MemoryNeeds& needs) {
  return needs.device_bytes + needs.pinned_bytes + needs.host_bytes;
}

class Memory : public ::testing::TestWithParam<Place> {
 protected:
  CacheConfig config_ = config_of(GetParam());
  Ledger ledger_;
};

TEST(MemoryNeeds, NoScratchForWindowsThatCannotFill) {
  CacheConfig config = small_config(small_model(1, 2, 1));
  const auto bytes = [&] {
    const auto needs = ClusterKVCache::memory_needs(config, Backend::kCpu, {});
    return std::pair{needs.device_bytes, needs.workspace_bytes};
  };
  for (int* tokens : {&config.cluster.window_tokens, &config.cluster.segment_tokens}) {
    *tokens = static_cast<int>(config.max_tokens);
    const auto full = bytes();
    *tokens = 1 << 24;
    EXPECT_EQ(bytes(), full);
  }
}

TEST_P(Memory, NeedsAreWhatTheConstructorTakes) {
  for (const std::int64_t max_tokens : {1, 700, 5000}) {
    for (const IndexDType dtype : {IndexDType::kInt8, IndexDType::kBF16, IndexDType::kF32}) {
      config_.max_tokens = max_tokens;
      config_.cluster.index_dtype = dtype;
      {
        const ClusterKVCache cache(config_, with(ledger_));
        const MemoryNeeds needs = ClusterKVCache::memory_needs(config_, Backend::kCpu, {});
        EXPECT_EQ(ledger_.live_bytes, store_bytes(needs)) << max_tokens;
        EXPECT_EQ(needs.pinned_bytes, 0U);
        EXPECT_EQ(needs.workspace_pinned_bytes, 0U);
        EXPECT_EQ(needs.host_bytes > 0, GetParam() == Place::kHost || GetParam() == Place::kHybrid);
        EXPECT_EQ(needs.file_bytes > 0, GetParam() == Place::kFile);
      }
      {
        const ClusterSelector selector(config_, with(ledger_));
        const MemoryNeeds needs = ClusterSelector::memory_needs(config_, Backend::kCpu, {});
        EXPECT_EQ(ledger_.live_bytes, store_bytes(needs)) << max_tokens;
      }
      EXPECT_TRUE(ledger_.all_returned());
    }
  }
}

TEST_P(Memory, AllOfItIsTakenInTheConstructor) {
  {
    Driver<ClusterKVCache> d(config_, {2, 512, 0}, with(ledger_));
    const int made = ledger_.allocations();
    const SequenceId id = d.add(1);
    d.prefill(id, 500);
    for (int i = 0; i < 60; ++i) d.decode(id);
    d.cache.remove(id);
    EXPECT_EQ(ledger_.allocations(), made);
  }
  EXPECT_TRUE(ledger_.all_returned());
}

TEST_P(Memory, UninitialisedStoresDoNotShow) {
  std::vector<std::vector<Output>> outputs;
  for (MemoryResource* memory :
       {&default_memory_resource(), static_cast<MemoryResource*>(&ledger_)}) {
    Driver<ClusterKVCache> d(config_, {2, 512, 0}, with(*memory));
    const SequenceId id = d.add(1);
    d.prefill(id, 333);
    for (int i = 0; i < 30; ++i) d.decode(id);
    outputs.push_back(d.decode(id));
  }
  EXPECT_TRUE(same_bits(outputs[0], outputs[1]));
}

TEST_P(Memory, FailureOfAnyAllocationIsOutOfMemoryAndLeaksNothing) {
  { const ClusterKVCache cache(config_, with(ledger_)); }
  const int all = ledger_.allocations();
  ASSERT_GT(all, 0);
  for (int allowed = 0; allowed < all; ++allowed) {
    Ledger poor;
    poor.allowed = allowed;
    EXPECT_THROW(ClusterKVCache(config_, with(poor)), OutOfMemory) << allowed;
    EXPECT_TRUE(poor.all_returned()) << allowed;
  }
}

TEST_P(Memory, MovedCacheGivesBackOnce) {
  {
    ClusterKVCache first(config_, with(ledger_));
    ClusterKVCache second(std::move(first));
    ClusterKVCache third(config_, with(ledger_));
    third = std::move(second);
    EXPECT_NO_THROW(third.add_sequence());
  }
  EXPECT_TRUE(ledger_.all_returned());
}

TEST_P(Memory, WorkspaceIsAllThatAPlanUses) {
  const PlanLimits limits{2, 600, 50};
  const std::size_t bytes =
      ClusterKVCache::memory_needs(config_, Backend::kCpu, limits).workspace_bytes;
  constexpr std::size_t kGuard = 256;
  const AlignedBytes memory = aligned_bytes(bytes + kGuard);
  std::memset(memory.get(), 0x5a, bytes + kGuard);
  Driver<ClusterKVCache> d(config_, limits);
  const SequenceId a = d.add(1), b = d.add(2);
  const StepRow first{a, 1, 0};
  d.plan = d.cache.plan({&first, 1}, limits, {memory.get(), bytes, nullptr, 0});
  const std::vector<float> zeros(2 * 64);
  for (int layer = 0; layer < 2; ++layer) {
    d.cache.append(layer, d.plan, d.kv_view(zeros), d.kv_view(zeros));
  }
  d.step({{a, 300, 1, Phase::kPrefillLast, 50}, {b, 300, 1, Phase::kPrefillLast, 50}});
  for (int i = 0; i < 60; ++i) d.step({{a, 1, 1, Phase::kDecode, 50}, {b}});
  for (std::size_t i = bytes; i < bytes + kGuard; ++i) {
    ASSERT_EQ(memory[i], std::byte{0x5a}) << "wrote " << i - bytes << " bytes behind the workspace";
  }
}

/// With segment_tokens = 0 a prompt may be longer than any scratch made ready: the one case in which
/// a step asks for memory.
TEST_P(Memory, ScratchForAWholePromptFailsWithoutATrace) {
  config_.cluster.segment_tokens = 0;
  Driver<ClusterKVCache> poor(config_, {2, 512, 0}, with(ledger_)), rich(config_, {2, 512, 0});
  const SequenceId id = poor.add(1);
  ASSERT_EQ(rich.add(1), id);
  for (auto* d : {&poor, &rich}) {
    d->begin({{id, 400, 0, Phase::kPrefill}});
    d->append_all();
  }
  ledger_.allowed = ledger_.allocations();
  const StepRow last{id, 100, 1, Phase::kPrefillLast};
  EXPECT_THROW(poor.cache.update(poor.plan, {&last, 1}), OutOfMemory);
  EXPECT_EQ(poor.cache.length(id), 400);
  ledger_.allowed = -1;
  EXPECT_TRUE(same_bits(poor.step({last}), rich.step({last})));
  EXPECT_TRUE(same_bits(poor.decode(id), rich.decode(id)));
}

/// A decode loop that allocates nothing itself.
class Loop {
 public:
  Loop(const CacheConfig& config, const Resources& resources)
      : config_(config), h_(config, {2, 512, 0}, resources) {
    const SequenceId id = h_.add(1);
    h_.prefill(id, 300);
    row_ = {.id = id};
    h_.begin({row_});
    h_.append_all();
    key_.assign(static_cast<std::size_t>(config.model.num_kv_heads * config.model.head_dim), 0.5F);
    query_.assign(static_cast<std::size_t>(config.model.num_q_heads * config.model.head_dim), 0.5F);
    out_ = make_out(output_, 1, config.model.num_q_heads, config.model.head_dim);
  }
  void step(int number) {
    for (std::size_t d = 0; d < key_.size(); ++d) {
      key_[d] = static_cast<float>((number * 31 + static_cast<int>(d) * 17) % 23) - 11.0F;
    }
    h_.cache.update(h_.plan, {&row_, 1});
    for (int layer = 0; layer < config_.model.num_layers; ++layer) {
      h_.cache.append(layer, h_.plan, h_.kv_view(key_), h_.kv_view(key_));
      h_.cache.attend(layer, h_.plan, {h_.query_view(query_), out_});
      (void)h_.cache.select(layer, h_.plan, h_.query_view(query_));
    }
  }
  [[nodiscard]] std::int64_t segments() const { return h_.cache.stats().kmeans_runs; }

 private:
  CacheConfig config_;
  Driver<ClusterKVCache> h_;
  StepRow row_;
  std::vector<float> key_, query_;
  Output output_;
  AttentionOut out_;
};

TEST(LockCount, SeesTheLocksOfOtherThreads) {
  if (!kCountsLocks) GTEST_SKIP() << "a sanitizer counts for itself";
  begin_counting_locks();
  std::mutex mutex;
  std::shared_mutex shared;
  std::thread([&] {
    const std::lock_guard one(mutex);
    const std::shared_lock two(shared);
  }).join();
  EXPECT_GE(end_counting_locks(), 2);
}

TEST_P(Memory, DecodeStepsAllocateNothingAndLockNothing) {
  if (!kCountsNews) GTEST_SKIP() << "a sanitizer counts for itself";
  for (const HeadGrouping grouping : {HeadGrouping::kShared, HeadGrouping::kPerQueryHead}) {
    config_.select.grouping = grouping;
    const auto pool = make_thread_pool(2);
    Loop loop(config_, {Backend::kCpu, pool.get(), &ledger_});
    loop.step(0);
    const int made = ledger_.allocations();
    const std::int64_t segments = loop.segments();
    for (int i = 1; i <= 400; ++i) {
      begin_counting_locks();
      begin_counting_news();
      loop.step(i);
      const int news = end_counting_news();
      ASSERT_EQ(end_counting_locks(), 0) << "in step " << i;
      ASSERT_EQ(news, 0) << "in step " << i;
    }
    EXPECT_GT(loop.segments(), segments + 20) << "windows were sealed in between";
    EXPECT_EQ(ledger_.allocations(), made);
  }
}

std::string name_of(const ::testing::TestParamInfo<Place>& place) {
  constexpr std::array kNames = {"Device", "Host", "Hybrid", "File"};
  return kNames[static_cast<std::size_t>(place.param)];
}
INSTANTIATE_TEST_SUITE_P(Places, Memory,
                         ::testing::Values(Place::kDevice, Place::kHost, Place::kHybrid,
                                           Place::kFile),
                         name_of);

TEST(LiveTokens, BoundPendingTokensAndNotTheLength) {
  CacheConfig config = small_config(small_model());
  config.max_tokens = 1 << 20;
  const auto bytes = [&] {
    return ClusterKVCache::memory_needs(config, Backend::kCpu, {4, 1024, 0}).device_bytes;
  };
  const std::size_t all = bytes();
  config.store.live_tokens = 512;
  const std::size_t row_bytes = 2 * 2 * 64 * size_of(small_model_dtype);
  EXPECT_LT(bytes(), all - ((std::size_t{1} << 20) - 1024) * row_bytes);

  CacheConfig plenty = config;
  plenty.store.live_tokens = 0;
  config.max_sequences = plenty.max_sequences = 1;
  config.max_tokens = plenty.max_tokens = 4096;
  Driver<ClusterKVCache> few(config, {1, 4096, 0});
  Driver<ClusterKVCache> many(plenty, {1, 4096, 0});
  const SequenceId id = few.add(7);
  const SequenceId other = many.add(7);
  // Two pages for 512 tokens, one for sinks, two that the ends of a run may need, one for truncate().
  expect_error<CapacityError>([&] { few.prefill(id, 1500, 1500); }, "store.live_tokens");
  EXPECT_EQ(few.cache.length(id), 0) << "nothing has changed";
  few.prefill(id, 1600, 800);  // the second chunk needs the pages of the first
  many.prefill(other, 1600, 800);
  for (int i = 0; i < 30; ++i) {
    EXPECT_TRUE(same_bits(few.decode(id), many.decode(other)));
  }
}

}  // namespace
}  // namespace clusterkv::testing
