// SPDX-License-Identifier: Apache-2.0
//
// Sequences written to bytes and read back: the same bits, and nothing but an error from other bytes.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>

#include "src/runtime/crc32.hpp"
#include "tests/pipeline/lineage.hpp"
#include "tests/support/errors.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::testing {
namespace {

/// What save() wrote, and where its blocks end.
struct Saved {
  std::vector<std::byte> bytes;
  std::vector<std::size_t> ends;  ///< of the blocks, after their checksums
};

template <class Cache>
Saved save(const Cache& cache, SequenceId id) {
  Saved saved;
  runtime::Crc32 crc;
  cache.save(id, [&](std::span<const std::byte> part) {
    const std::uint32_t so_far = crc.get();
    saved.bytes.insert(saved.bytes.end(), part.begin(), part.end());
    if (part.size() == 4 && std::memcmp(part.data(), &so_far, 4) == 0) {
      saved.ends.push_back(saved.bytes.size());
      crc = {};
    } else {
      crc.add(part);
    }
  });
  return saved;
}

/// Reads at most `most` bytes at once.
ReadFn reader_of(const std::vector<std::byte>& bytes, std::size_t most = ~std::size_t{0}) {
  return [&bytes, most, at = std::size_t{0}](std::span<std::byte> to) mutable {
    const std::size_t count = std::min({to.size(), most, bytes.size() - at});
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), count, to.begin());
    at += count;
    return count;
  };
}

template <class Cache>
SequenceId load(Driver<Cache>& d, const std::vector<std::byte>& bytes, std::uint64_t seed) {
  const SequenceId id = d.cache.load(reader_of(bytes));
  d.reseed(id, seed);
  return id;
}

class SaveLoad : public Lineage {};
INSTANTIATE_TEST_SUITE_P(Residencies, SaveLoad, kResidencies, name_of);

TEST_P(SaveLoad, ARestoredSequenceHasTheSameBits) {
  CacheConfig other_config = config_;
  other_config.store.residency = Residency::kDevice;
  other_config.max_sequences = 9;
  other_config.max_tokens = 3000;
  for (int decoded = 0; decoded < 30; ++decoded) {
    Cache d(config_), restored(other_config);
    const SequenceId id = live(d, 1, decoded);
    live(restored, 5, 3);  // other pages are free
    const Saved saved = save(d.cache, id);
    const SequenceId back = load(restored, saved.bytes, 1);
    EXPECT_EQ(restored.cache.length(back), 300 + decoded);
    EXPECT_EQ(save(restored.cache, back).bytes, saved.bytes);
    const SequenceId beside = load(d, saved.bytes, 1);
    const Outputs wanted = go_on(d, id, 40, 110);
    EXPECT_TRUE(same_bits(go_on(restored, back, 40, 110), wanted)) << decoded;
    EXPECT_TRUE(same_bits(go_on(d, beside, 40, 110), wanted)) << decoded;
  }
}

TEST_P(SaveLoad, WorksForAnyLengthAndWhateverCameBefore) {
  config_.cluster.segment_tokens = 400;
  for (const int length : {0, 1, 3, 4, 5, 100, 259, 260, 261, 303, 404, 405, 700}) {
    Cache d(config_), restored(config_);
    const SequenceId whole = d.add(1);
    d.begin({{whole, 900, 0, Phase::kPrefill}});
    d.append_all();
    const SequenceId id = d.fork(whole, length);
    d.cache.remove(whole);
    const Saved saved = save(d.cache, id);
    const SequenceId back = load(restored, saved.bytes, 1);
    EXPECT_EQ(restored.cache.stats().live_tokens, length);
    EXPECT_TRUE(same_bits(go_on(restored, back, 40, 200), go_on(d, id, 40, 200))) << length;
    restored.cache.remove(back);
    EXPECT_EQ(restored.cache.stats().held_bytes, 0);
  }
}

TEST_P(SaveLoad, ReadsNoByteMoreThanWasSavedInAnyPieces) {
  Cache d(config_);
  const SequenceId id = live(d, 1, 10);
  Saved saved = save(d.cache, id);
  const std::size_t size = saved.bytes.size();
  saved.bytes.resize(size + 100, std::byte{1});
  for (const std::size_t most : {std::size_t{1}, std::size_t{7}, std::size_t{100000}}) {
    std::size_t total = 0;
    const ReadFn inner = reader_of(saved.bytes, most);
    const SequenceId back = d.cache.load([&](std::span<std::byte> to) {
      const std::size_t count = inner(to);
      total += count;
      return count;
    });
    EXPECT_EQ(total, size);
    d.cache.remove(back);
  }
}

// ---------------------------------------------------------------------------------- bad input

/// A small sequence of every kind of block, and a cache that must not change.
class BadBytes : public ::testing::Test {
 protected:
  BadBytes() : config_(small_config(small_model(2, 1, 1))) {
    config_.select.dense_layers = 1;
    config_.cluster.segment_tokens = 30;
    config_.model.kv_dtype = DType::kBF16;
    source_ = std::make_unique<Driver<ClusterKVCache>>(config_);
    target_ = std::make_unique<Driver<ClusterKVCache>>(config_);
    const SequenceId id = source_->add(1);
    source_->prefill(id, 70);
    good_ = save(source_->cache, id);
    bystander_ = target_->add(2);
    target_->prefill(bystander_, 100);
    before_ = target_->cache.stats();
  }
  void TearDown() override {
    const CacheStats after = target_->cache.stats();
    EXPECT_EQ(after.held_bytes, before_.held_bytes);
    EXPECT_EQ(after.live_tokens, before_.live_tokens);
    EXPECT_EQ(after.live_sequences, before_.live_sequences);
    const SequenceId id = load(*target_, good_.bytes, 1);
    EXPECT_TRUE(same_bits(go_on(*target_, id, 30), go_on(*source_, SequenceId{0}, 30)));
  }
  void expect_refused(const std::vector<std::byte>& bytes, const std::string& what) {
    try {
      (void)target_->cache.load(reader_of(bytes));
      ADD_FAILURE() << "loaded: " << what;
    } catch (const FormatError&) {
    } catch (const std::exception& error) {
      ADD_FAILURE() << what << ": another error: " << error.what();
    }
  }
  /// With `edit` made to a block, and the checksum that goes with it.
  std::vector<std::byte> forged(std::size_t block, const std::function<void(std::byte*)>& edit) {
    std::vector<std::byte> bytes = good_.bytes;
    const std::size_t first = block == 0 ? 0 : good_.ends[block - 1];
    const std::size_t last = good_.ends[block] - 4;
    edit(bytes.data() + first);
    runtime::Crc32 crc;
    crc.add(std::span(bytes).subspan(first, last - first));
    const std::uint32_t sum = crc.get();
    std::memcpy(bytes.data() + last, &sum, 4);
    return bytes;
  }
  template <class T>
  std::vector<std::byte> forged_number(std::size_t block, std::size_t offset, T value) {
    return forged(block,
                  [&](std::byte* data) { std::memcpy(data + offset, &value, sizeof value); });
  }
  [[nodiscard]] std::size_t size_of_block(std::size_t block) const {
    return good_.ends[block] - (block == 0 ? 0 : good_.ends[block - 1]) - 4;
  }

  CacheConfig config_;
  std::unique_ptr<Driver<ClusterKVCache>> source_, target_;
  Saved good_;
  SequenceId bystander_{};
  CacheStats before_;
};

TEST_F(BadBytes, CutOffAnywhereAreRefused) {
  for (std::size_t size = 0; size < good_.bytes.size(); ++size) {
    expect_refused({good_.bytes.begin(), good_.bytes.begin() + static_cast<std::ptrdiff_t>(size)},
                   "the first " + std::to_string(size) + " bytes");
    if (HasFailure()) return;
  }
}

TEST_F(BadBytes, WithAnyByteChangedAreRefused) {
  Random random(1);
  for (std::size_t at = 0; at < good_.bytes.size(); ++at) {
    std::vector<std::byte> bytes = good_.bytes;
    bytes[at] ^= static_cast<std::byte>(random.between(1, 255));
    expect_refused(bytes, "byte " + std::to_string(at) + " changed");
    if (HasFailure()) return;
  }
}

/// Overwritten, flipped, lost, added or moved bytes.
void damage(std::vector<std::byte>& bytes, Random& random) {
  const auto place = [&] { return random.between(0, static_cast<int>(bytes.size()) - 1); };
  const int first = place();
  const int last = std::min(first + random.between(1, 200), static_cast<int>(bytes.size()));
  const auto begin = bytes.begin() + first, end = bytes.begin() + last;
  switch (random.between(0, 5)) {
    case 0:
      for (auto at = begin; at != end; ++at) *at = static_cast<std::byte>(random.between(0, 255));
      break;
    case 1: *begin ^= static_cast<std::byte>(1 << random.between(0, 7)); break;
    case 2: bytes.erase(begin, end); break;
    case 3: bytes.insert(begin, static_cast<std::size_t>(last - first), std::byte{0}); break;
    case 4: bytes.resize(static_cast<std::size_t>(first)); break;
    default: std::rotate(bytes.begin() + place() % (first + 1), begin, end);
  }
}

/// CLUSTERKV_DAMAGED_FILES sets how many.
TEST_F(BadBytes, WithAnyDamageAreRefusedOrTheSame) {
  const char* text = std::getenv("CLUSTERKV_DAMAGED_FILES");
  const int count = text != nullptr ? std::atoi(text) : 5000;
  Random random(2);
  int same = 0;
  for (int i = 0; i < count; ++i) {
    std::vector<std::byte> bytes = good_.bytes;
    for (int times = random.between(1, 3); times > 0 && !bytes.empty(); --times) {
      damage(bytes, random);
    }
    const bool has_all = bytes.size() >= good_.bytes.size() &&
                         std::equal(good_.bytes.begin(), good_.bytes.end(), bytes.begin());
    if (has_all) {
      const SequenceId id = target_->cache.load(reader_of(bytes));
      ASSERT_EQ(save(target_->cache, id).bytes, good_.bytes);
      target_->cache.remove(id);
      ++same;
    } else {
      expect_refused(bytes, "damage " + std::to_string(i));
    }
    if (HasFailure()) return;
  }
  std::printf("%d damaged files: %d refused, %d the same\n", count, count - same, same);
}

TEST_F(BadBytes, OfNoiseAreRefused) {
  Random random(2);
  for (int i = 0; i < 2000; ++i) {
    std::vector<std::byte> noise(static_cast<std::size_t>(random.between(0, 2000)));
    for (std::byte& byte : noise) byte = static_cast<std::byte>(random.between(0, 255));
    expect_refused(noise, "noise");
    std::copy_n(good_.bytes.begin(), std::min<std::size_t>(noise.size(), 16), noise.begin());
    expect_refused(noise, "noise with the right beginning");
  }
}

/// Checksums keep nobody from writing what cannot be.
TEST_F(BadBytes, WithAHostileHeadAreRefused) {
  const std::size_t counts = size_of_block(0) - 24;  // length, segments, values
  for (const std::uint64_t length :
       {std::uint64_t{1} << 61, ~std::uint64_t{0}, std::uint64_t{1} << 63}) {
    const auto bytes = forged_number(0, counts, length);
    if (length == std::uint64_t{1} << 61) {
      expect_error<CapacityError>([&] { (void)target_->cache.load(reader_of(bytes)); },
                                  "max_tokens");
    } else {
      expect_refused(bytes, "length");
    }
  }
  for (const std::uint64_t length : {0, 3, 40, 69}) {
    expect_refused(forged_number(0, counts, length), "too short for its segments, or its blocks");
  }
  for (const std::uint64_t segments : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{3},
                                       std::uint64_t{70}, std::uint64_t{71}, ~std::uint64_t{0}}) {
    expect_refused(forged_number(0, counts + 8, segments), "segments");
  }
  for (const std::uint64_t values : {0, 2, 3}) {  // unknown, missing, no such thing
    expect_refused(forged_number(0, counts + 16, values), "values");
  }
  expect_error<FormatError>(
      [&] { (void)target_->cache.load(reader_of(forged_number(0, 8, std::uint64_t{1}))); },
      "version 1, expected 2");
  expect_error<FormatError>(
      [&] { (void)target_->cache.load(reader_of(forged_number(0, 0, std::uint64_t{2}))); },
      "expected a saved sequence");
}

TEST_F(BadBytes, WithHostileSegmentsAreRefused) {
  ASSERT_EQ(size_of_block(1), 2 * 8U);
  for (const std::int32_t number :
       {0, -1, 1, 23, 29, 31, 1 << 30, std::numeric_limits<int>::min()}) {
    expect_refused(forged_number(1, 0, number), "rows of a segment");
    expect_refused(forged_number(1, 8, number), "rows of a segment");
    if (number != 1) expect_refused(forged_number(1, 4, number), "blocks of a segment");
  }
}

TEST_F(BadBytes, WithHostilePositionsAndClustersAreRefused) {
  const std::size_t row_bytes = 2 * 64 * 2;
  int positions = 0, offsets = 0, used = 0;
  for (std::size_t block = 2; block < good_.ends.size(); ++block) {
    const std::size_t size = size_of_block(block);
    if (size == 60 * (row_bytes + 4)) {  // stored rows with positions, of either layer
      for (const std::uint32_t token : {0U, 3U, 64U, 5U, 0xffffffffU, 0x80000000U}) {
        for (const std::size_t row : {0U, 29U, 30U, 59U}) {
          const auto bytes = forged_number(block, 60 * row_bytes + 4 * row, token);
          if (bytes != good_.bytes) expect_refused(bytes, "position"), ++positions;
        }
      }
    }
    if (size == 64 * 64 * 2 + 3 * 64 * 4 + 65 * 4) {
      for (const std::size_t entry : {0U, 1U, 2U, 40U, 64U}) {
        for (const std::uint32_t row : {7777U, 0xffffffffU, 61U, 0U}) {
          const auto bytes = forged_number(block, size - 65 * 4 + 4 * entry, row);
          if (bytes != good_.bytes) expect_refused(bytes, "offset"), ++offsets;
        }
      }
    }
    if (size == 2 * 64 * 4 + 4) {
      for (const std::int32_t count : {-1, 0, 65, 1 << 30, std::numeric_limits<int>::min()}) {
        expect_refused(forged_number(block, size - 4, count), "used clusters"), ++used;
      }
    }
  }
  EXPECT_GT(positions, 30);
  EXPECT_GT(offsets, 30);
  EXPECT_EQ(used, 2 * 5);
}

TEST_F(BadBytes, OfAnotherKindOfCacheAreRefused) {
  const std::vector<std::pair<std::string, std::function<void(CacheConfig&)>>> changes = {
      {"model.num_layers", [](CacheConfig& c) { c.model.num_layers = 3; }},
      {"model.num_kv_heads",
       [](CacheConfig& c) { c.model.num_kv_heads = c.model.num_q_heads = 2; }},
      {"model.head_dim", [](CacheConfig& c) { c.model.head_dim = 80; }},
      {"model.value_dim", [](CacheConfig& c) { c.model.value_dim = 80; }},
      {"model.kv_dtype", [](CacheConfig& c) { c.model.kv_dtype = DType::kF16; }},
      {"model.layers",
       [](CacheConfig& c) {
         c.model.layers = {0, 7};
       }},
      {"select.dense_layers", [](CacheConfig& c) { c.select.dense_layers = 0; }},
      {"cluster.tokens_per_cluster", [](CacheConfig& c) { c.cluster.tokens_per_cluster = 9; }},
      {"cluster.segment_tokens", [](CacheConfig& c) { c.cluster.segment_tokens = 0; }},
      {"cluster.window_tokens", [](CacheConfig& c) { c.cluster.window_tokens = 25; }},
      {"cluster.min_window_clusters", [](CacheConfig& c) { c.cluster.min_window_clusters = 5; }},
      {"cluster.kmeans_iterations", [](CacheConfig& c) { c.cluster.kmeans_iterations = 5; }},
      {"cluster.sink_tokens", [](CacheConfig& c) { c.cluster.sink_tokens = 5; }},
      {"cluster.seed", [](CacheConfig& c) { c.cluster.seed = 1; }},
      {"cluster.metric", [](CacheConfig& c) { c.cluster.metric = Metric::kL2; }},
      {"cluster.index_dtype", [](CacheConfig& c) { c.cluster.index_dtype = IndexDType::kF32; }}};
  for (const auto& [name, change] : changes) {
    CacheConfig config = config_;
    change(config);
    ClusterKVCache other(config);
    expect_error<FormatError>([&] { (void)other.load(reader_of(good_.bytes)); }, name);
  }
  ClusterSelector selector(config_);
  expect_error<FormatError>([&] { (void)selector.load(reader_of(good_.bytes)); }, "rows kept 1");
}

TEST_F(BadBytes, NorWhatTheFunctionsThrowLeaveATrace) {
  Driver<ClusterKVCache>& d = *target_;
  expect_error<ValueError>([&] { (void)d.cache.load({}); }, "read: empty");
  expect_error<ValueError>([&] { d.cache.save(bystander_, {}); }, "write: empty");
  expect_error<ValueError>(
      [&] { (void)d.cache.load([](std::span<std::byte> to) { return to.size() + 1; }); },
      "expected no more");
  for (const std::size_t end : good_.ends) {
    const ReadFn inner = reader_of(good_.bytes);
    std::size_t total = 0;
    expect_error<std::runtime_error>(
        [&] {
          (void)d.cache.load([&](std::span<std::byte> to) {
            if (total + to.size() >= end) throw std::runtime_error("disk");
            total += to.size();
            return inner(to);
          });
        },
        "disk");
  }
  expect_error<std::runtime_error>(
      [&] {
        d.cache.save(bystander_,
                     [](std::span<const std::byte>) { throw std::runtime_error("full"); });
      },
      "full");
}

TEST_F(BadBytes, AndCallsThatCannotBeAreRefused) {
  Driver<ClusterKVCache>& d = *target_;
  const WriteFn nowhere = [](std::span<const std::byte>) {};
  expect_error<UnknownSequence>([&] { d.cache.save(SequenceId{77}, nowhere); }, "id: sequence 77");
  d.begin({{.id = bystander_}});
  d.append(0);
  expect_error<StepError>([&] { d.cache.save(bystander_, nowhere); }, "lacks append() of layer 1");
  d.append(1);
  before_ = d.cache.stats();
  for (int i = 0; i < 3; ++i) d.add(9);
  expect_error<CapacityError>([&] { (void)d.cache.load(reader_of(good_.bytes)); },
                              "load: 4 sequences are live");
  for (int i = 1; i <= 3; ++i) d.cache.remove(SequenceId{i});
  CacheConfig small = config_;
  small.max_tokens = 69;
  ClusterKVCache tight(small);
  expect_error<CapacityError>([&] { (void)tight.load(reader_of(good_.bytes)); },
                              "70 tokens beside 0 live ones, expected at most max_tokens 69");
}

TEST(SelectorSaveLoad, ChoosesTheSame) {
  const CacheConfig config = config_of(Residency::kDevice);
  Driver<ClusterSelector> d(config), restored(config);
  const SequenceId id = d.add(1);
  d.prefill(id, 300);
  choices(d, id, 20);
  const Saved saved = save(d.cache, id);
  const SequenceId back = load(restored, saved.bytes, 1);
  EXPECT_EQ(choices(restored, back, 60), choices(d, id, 60));
  // A selector whose appends had no values takes none that has.
  Harness<ClusterSelector> h(config, {1, 1, 0});
  const SequenceId own = h.cache.add_sequence();
  h.begin({{.id = own}});
  const std::vector<float> key(2 * 64, 1.0F);
  h.cache.append(0, h.plan, h.kv_view(key), {});
  expect_error<FormatError>([&] { (void)h.cache.load(reader_of(saved.bytes)); },
                            "saved with values");
}

}  // namespace
}  // namespace clusterkv::testing
