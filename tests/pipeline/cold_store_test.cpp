// SPDX-License-Identifier: Apache-2.0
//
// Rows in a file: the same bits and counts as in memory, however much smaller memory is; and a disk that
// fails is told, and costs nothing that was in memory.
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <span>

#include "tests/pipeline/lineage.hpp"
#include "tests/support/disk.hpp"
#include "tests/support/errors.hpp"
#include "tests/support/trace.hpp"

namespace clusterkv::testing {
namespace {

CacheConfig in_file(CacheConfig config, const Directory& directory) {
  config.store.cold_path = directory.path();
  return config;
}

std::vector<std::byte> save(const ClusterKVCache& cache, SequenceId id) {
  std::vector<std::byte> bytes;
  cache.save(id, [&](std::span<const std::byte> part) {
    bytes.insert(bytes.end(), part.begin(), part.end());
  });
  return bytes;
}

SequenceId load(ClusterKVCache& cache, const std::vector<std::byte>& bytes) {
  std::size_t at = 0;
  return cache.load([&](std::span<std::byte> to) {
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), to.size(), to.begin());
    at += to.size();
    return to.size();
  });
}

/// All that a life gave.
struct Story {
  Outputs outputs;
  std::vector<std::byte> saved;
  std::vector<float> rows;
  CacheStats stats;
};

Story tell(const CacheConfig& config) {
  Driver<ClusterKVCache> d(config);
  Story story;
  const auto keep = [&](const Outputs& outputs) {
    story.outputs.insert(story.outputs.end(), outputs.begin(), outputs.end());
  };
  const SequenceId a = d.add(1), b = d.add(2);
  keep(d.step({{a, 500, 1, Phase::kPrefill}, {b, 30, 1, Phase::kPrefill}}));
  keep(d.step({{a, 200, 1, Phase::kPrefillLast}}));
  for (int i = 0; i < 30; ++i) keep(d.step({{.id = a}, {b, 3, 1, Phase::kDecode, 16}}));
  const SequenceId child = d.fork(a, 250);  // inside a segment
  const SequenceId whole = d.fork(a);
  for (int i = 0; i < 40; ++i) keep(d.step({{.id = a}, {.id = whole}, {.id = child}}));
  d.cache.remove(whole);
  d.cache.truncate(a, 310);
  keep(go_on(d, a, 30));
  story.saved = save(d.cache, a);
  const SequenceId back = load(d.cache, story.saved);
  d.reseed(back, 1);
  keep(go_on(d, back, 30));
  const std::int64_t length = d.cache.length(back);
  std::vector<float> key(static_cast<std::size_t>(length * 2 * 64)), value(key.size());
  d.cache.read_rows(1, back, 0, length, view3(key, length, 2, 64), view3(value, length, 2, 64));
  story.rows = key;
  story.rows.insert(story.rows.end(), value.begin(), value.end());
  story.stats = d.cache.stats();
  return story;
}

TEST(ColdStore, HasTheBitsAndCountsOfAStoreInMemory) {
  const Directory directory;
  for (const HeadGrouping grouping : {HeadGrouping::kShared, HeadGrouping::kPerQueryHead}) {
    for (const std::size_t device_bytes : {0, 1, 30000}) {
      CacheConfig config = config_of(Residency::kHost);
      config.select.grouping = grouping;
      config.store.device_bytes = device_bytes;
      const Story wanted = tell(config);
      config.store.residency = Residency::kAuto;
      Story story = tell(in_file(config, directory));
      EXPECT_EQ(story.stats.host_bytes, 0) << "a file is no memory";
      story.stats.host_bytes = wanted.stats.host_bytes;
      EXPECT_TRUE(same_bits(story.outputs, wanted.outputs)) << device_bytes;
      EXPECT_TRUE(same_bits(story.rows, wanted.rows));
      EXPECT_EQ(story.saved, wanted.saved);
      EXPECT_EQ(std::memcmp(&story.stats, &wanted.stats, sizeof story.stats), 0);
      EXPECT_GT(story.stats.total.quad_misses, 0);
      EXPECT_EQ(story.stats.total.quads_in_place > 0, device_bytes != 0);
    }
  }
  EXPECT_TRUE(directory.is_empty());
}

// ------------------------------------------------------------------------------ recorded attention

/// A layer of a trace, token by token from its first query on.
class Replay {
 public:
  Replay(const RecordedLayer& recorded, const CacheConfig& config)
      : recorded_(recorded), harness_(config, {1, recorded.query_start, 0}) {
    id_ = harness_.cache.add_sequence();
    append({id_, recorded.query_start, 0, Phase::kPrefillLast}, 0);
  }

  Output step(int query) {
    append({.id = id_}, recorded_.query_start + query);
    const int heads = recorded_.num_q_heads, dim = recorded_.head_dim;
    Output output;
    harness_.cache.attend(
        0, harness_.plan,
        {contiguous_view(recorded_.query.data() + std::ptrdiff_t{query} * heads * dim, DType::kF16,
                         {1, heads, dim}),
         make_out(output, 1, heads, dim)});
    return output;
  }
  [[nodiscard]] StepStats stats() const { return harness_.cache.stats().total; }

 private:
  void append(const StepRow& row, int first) {
    harness_.begin({row});
    const int heads = recorded_.num_kv_heads, dim = recorded_.head_dim;
    const auto view = [&](const std::vector<std::uint16_t>& all) {
      return contiguous_view(all.data() + std::ptrdiff_t{first} * heads * dim, DType::kF16,
                             {row.num_new_tokens, heads, dim});
    };
    harness_.cache.append(0, harness_.plan, view(recorded_.key), view(recorded_.value));
  }

  const RecordedLayer& recorded_;
  Harness<ClusterKVCache> harness_;
  SequenceId id_{};
};

/// A quarter of the rows fits into the slots, and a quarter into what the host may give.
void expect_same_with_a_quarter(const RecordedLayer& recorded) {
  const Directory directory;
  CacheConfig config = CacheConfig::standard(recorded.model(DType::kF16));
  config.max_sequences = 1;
  config.max_tokens = recorded.num_tokens;
  config.store.residency = Residency::kDevice;
  Replay in_memory(recorded, config);
  const std::size_t bytes =
      recorded.key.size() * sizeof(std::uint16_t) + recorded.value.size() * sizeof(std::uint16_t);
  config.store.residency = Residency::kHost;
  config.store.device_bytes = bytes / 4;
  config.store.host_bytes = bytes / 4;
  expect_error<CapacityError>([&] { Replay replay(recorded, config); }, "store.host_bytes");
  Replay on_disk(recorded, in_file(config, directory));
  const int queries = std::min(256, recorded.num_tokens - recorded.query_start);
  for (int i = 0; i < queries; ++i) {
    ASSERT_TRUE(same_bits({on_disk.step(i)}, {in_memory.step(i)})) << "query " << i;
  }
  EXPECT_GT(on_disk.stats().quad_misses, 0);
  EXPECT_EQ(on_disk.stats().dense_selections, 0);
}

TEST(ColdStore, OfFourTimesWhatMemoryHoldsAnswersTheSameOnTheEmbeddedTrace) {
  expect_same_with_a_quarter(
      load_recorded_layer(CLUSTERKV_DATA_DIR "/smollm2-135m-genesis-4k-layer9.safetensors", 9));
}

TEST(ColdStore, OfFourTimesWhatMemoryHoldsAnswersTheSameOnTheLongerTrace) {
  const char* folder = std::getenv("CLUSTERKV_TRACES_DIR");
  const std::string path =
      std::string(folder == nullptr ? "" : folder) + "/smollm2-135m-genesis-8k.safetensors";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no 8k trace (CLUSTERKV_TRACES_DIR)";
  for (const int layer : {9, 29}) expect_same_with_a_quarter(load_recorded_layer(path, layer));
}

// ------------------------------------------------------------------------------------------- faults

/// The file is truly gone for a while: what is in memory still answers, what is not is a FileError, and
/// afterwards all is as it was.
TEST(ColdStore, ThatLosesItsDiskKeepsWhatIsInMemory) {
  const Directory directory;
  Driver<ClusterKVCache> twin(config_of(Residency::kHost));
  Driver<ClusterKVCache> d(in_file(config_of(Residency::kHost), directory));
  const std::array all = {&twin, &d};
  for (auto* each : all) {
    each->add(1);
    each->prefill(SequenceId{0}, 300);
    go_on(*each, SequenceId{0}, 5);
    each->add(2);
    each->prefill(SequenceId{1}, 20);  // sinks and pending tokens alone
    each->fork(SequenceId{0});
  }
  const SequenceId stored{0}, pending{1}, child{2};
  const std::vector<std::byte> saved = save(d.cache, stored);
  {
    const LostFile lost;
    EXPECT_TRUE(same_bits(go_on(d, pending, 2), go_on(twin, pending, 2)));
    d.begin({{.id = stored}});
    d.append(0);
    (void)d.attend(0, d.queries(0));  // a dense layer
    d.append(1);
    for (int again = 0; again < 2; ++again) {
      expect_error<FileError>([&] { (void)d.attend(1, d.queries(1)); }, "store.cold_path");
    }
    expect_error<FileError>([&] { (void)d.fork(stored, 150); }, "store.cold_path");
    expect_error<FileError>([&] { d.cache.truncate(stored, 150); }, "store.cold_path");
    expect_error<FileError>([&] { d.cache.save(stored, [](std::span<const std::byte>) {}); },
                            "store.cold_path");
    expect_error<FileError>([&] { (void)load(d.cache, saved); }, "store.cold_path");
    // A page of the fork's to be copied, then a segment of its own to be written.
    expect_error<FileError>(
        [&] {
          d.begin({{child, 30, 0, Phase::kPrefillLast}});
        },
        "store.cold_path");
    EXPECT_EQ(d.cache.length(child), 305);
    d.begin({{pending, 30, 0, Phase::kPrefillLast}});
    d.append(0);
    expect_error<FileError>([&] { d.append(1); }, "store.cold_path");
    d.cache.truncate(pending, 22);
    d.begin({{.id = stored}});
    d.append_all();
    std::vector<float> rows(200 * 2 * 64, 1.0F);
    expect_error<FileError>(
        [&] {
          d.cache.read_rows(1, stored, 100, 300, view3(rows, 200, 2, 64), view3(rows, 200, 2, 64));
        },
        "store.cold_path");
    EXPECT_EQ(d.cache.length(stored), 307);
  }
  for (int i = 0; i < 2; ++i) {
    twin.begin({{.id = stored}});
    twin.append_all();
  }
  EXPECT_TRUE(same_bits({d.attend(1, d.queries(1))}, {twin.attend(1, twin.queries(1))}));
  for (const SequenceId id : {stored, pending, child}) {
    EXPECT_TRUE(same_bits(go_on(d, id, 40, 110), go_on(twin, id, 40, 110)));
  }
}

TEST(ColdStore, TellsOfRowsThatAreReadInPlaceToo) {
  const Directory directory;
  CacheConfig config = in_file(config_of(Residency::kHost), directory);
  config.store.device_bytes = 1;  // a slot
  Driver<ClusterKVCache> d(config);
  const SequenceId id = d.add(1);
  d.prefill(id, 300);
  d.begin({{.id = id}});
  d.append_all();
  const Output before = d.attend(1, d.queries(1));
  {
    const LostFile lost;
    expect_error<FileError>([&] { (void)d.attend(1, d.queries(1)); }, "store.cold_path");
  }
  EXPECT_TRUE(same_bits({d.attend(1, d.queries(1))}, {before}));
}

TEST(ColdStore, NeedsADirectory) {
  const Directory directory;
  CacheConfig config = config_of(Residency::kHost);
  config.store.cold_path = directory.path() + "/none";
  EXPECT_TRUE(ClusterKVCache::supports(config, Backend::kCpu).ok) << "nobody looked yet";
  expect_error<FileError>([&] { ClusterKVCache cache(config); }, "store.cold_path");
  EXPECT_NO_THROW(ClusterSelector{config}) << "has no rows to store";
}

TEST(ColdStore, NeedsNoMemoryForRowsInItsFile) {
  const Directory directory;
  CacheConfig config = config_of(Residency::kHost);
  const auto needs = [](const CacheConfig& c) {
    return ClusterKVCache::memory_needs(c, Backend::kCpu, {});
  };
  const MemoryNeeds warm = needs(config), cold = needs(in_file(config, directory));
  EXPECT_EQ(cold.host_bytes, 0U);
  EXPECT_EQ(cold.file_bytes, warm.host_bytes);
  EXPECT_EQ(warm.file_bytes, 0U);
  EXPECT_EQ(cold.device_bytes, warm.device_bytes);
  config.store.host_bytes = warm.host_bytes / 2;
  EXPECT_LE(needs(config).host_bytes, warm.host_bytes / 2) << "fewer rows";
  EXPECT_EQ(needs(in_file(config, directory)).file_bytes, cold.file_bytes) << "as many as before";
}

/// Some pages stay in memory, the others lie in the file.
TEST(ColdStore, TakesWhatTheDeviceHasNoRoomFor) {
  const Directory directory;
  const Story wanted = tell(config_of(Residency::kDevice));
  CacheConfig config = config_of(Residency::kHybrid);
  for (const std::size_t device_bytes : {1, 900000, 1500000}) {
    config.store.device_bytes = device_bytes;
    const Story in_memory = tell(config);
    Story story = tell(in_file(config, directory));
    EXPECT_TRUE(same_bits(story.outputs, wanted.outputs)) << device_bytes;
    EXPECT_TRUE(same_bits(story.rows, wanted.rows)) << device_bytes;
    EXPECT_EQ(story.saved, wanted.saved) << device_bytes;
    story.stats.host_bytes = in_memory.stats.host_bytes;
    EXPECT_EQ(std::memcmp(&story.stats, &in_memory.stats, sizeof story.stats), 0);
    EXPECT_GT(story.stats.total.quad_misses, 0) << device_bytes;
  }
  config.store.device_bytes = std::size_t{1} << 30;
  config.store.cold_path = directory.path() + "/none";
  fail_disk(0);
  EXPECT_TRUE(same_bits(tell(config).outputs, wanted.outputs)) << "needs no file";
  EXPECT_FALSE(end_failing_disk()) << "nothing was asked for";
}

}  // namespace
}  // namespace clusterkv::testing
