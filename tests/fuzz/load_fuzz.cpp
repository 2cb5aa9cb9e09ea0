// SPDX-License-Identifier: Apache-2.0
//
// Any bytes as a saved sequence: a typed error that leaves nothing behind, or a sequence that can be
// saved as the same bytes, decoded and removed. The first byte says what loads it. Each input is taken
// as it is, and once more with right checksums, or only a flipped checksum would ever be seen.
#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "clusterkv/clusterkv.hpp"
#include "tests/fuzz/load_config.hpp"
#include "tests/fuzz/require.hpp"

namespace {

using namespace clusterkv;
using fuzz::load_config;
using fuzz::require;
using Bytes = std::vector<std::byte>;

class Inline final : public Executor {
 public:
  [[nodiscard]] int concurrency() const noexcept override { return 1; }
  void run(int num_tasks, void (*task)(void*, int), void* arg) override {
    for (int i = 0; i < num_tasks; ++i) task(arg, i);
  }
};

/// A cache or selector that stays, and a plan of it.
template <class Cache>
class Target {
 public:
  explicit Target(const CacheConfig& config)
      : cache_(config, {Backend::kCpu, &executor_, nullptr}),
        needs_(Cache::memory_needs(config, Backend::kCpu, kLimits)),
        memory_(new (std::align_val_t{64}) std::byte[needs_.workspace_bytes]) {}
  ~Target() { operator delete[](memory_, std::align_val_t{64}); }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  void run(const Bytes& bytes) {
    require(cache_.stats().held_bytes == 0, "something is held before");
    std::size_t read = 0;
    std::optional<SequenceId> id = load(bytes, read);
    Bytes repaired = bytes;
    // Each failure tells one right checksum.
    for (int i = 0; i < 64 && !id && repair(repaired); ++i) id = load(repaired, read);
    if (id) live(*id, repaired, read);
    require(cache_.stats().held_bytes == 0, "something is held after");
    require(cache_.stats().live_tokens == 0, "tokens are left");
  }

 private:
  static constexpr PlanLimits kLimits{1, 16, 0};

  std::optional<SequenceId> load(const Bytes& bytes, std::size_t& read) {
    read = 0;
    message_.clear();
    try {
      return cache_.load([&](std::span<std::byte> to) {
        const std::size_t count = std::min(to.size(), bytes.size() - read);
        std::copy_n(bytes.data() + read, count, to.data());
        read += count;
        return count;
      });
    } catch (const FormatError& error) {
      message_ = error.what();
    } catch (const CapacityError& error) {
      message_ = error.what();
    }
    require(!message_.empty(), "an error without a message");
    require(cache_.stats().held_bytes == 0, "a load that failed holds pages");
    return std::nullopt;
  }

  /// Writes the checksum that the message says the bytes have.
  bool repair(Bytes& bytes) const {
    unsigned sum = 0;
    std::size_t end = 0;
    if (std::sscanf(message_.c_str(), "read: checksum %x before byte %zu", &sum, &end) != 2) {
      return false;
    }
    require(end >= 4 && end <= bytes.size(), "a checksum outside of the bytes");
    std::memcpy(bytes.data() + end - 4, &sum, 4);
    return true;
  }

  void live(SequenceId id, const Bytes& bytes, std::size_t read) {
    Bytes saved;
    cache_.save(id, [&](std::span<const std::byte> part) {
      saved.insert(saved.end(), part.begin(), part.end());
    });
    require(saved.size() == read, "saved other than was read");
    require(std::equal(saved.begin(), saved.end(), bytes.begin()), "saved as other bytes");
    const std::int64_t length = cache_.length(id);
    for (int tokens : {1, 9, 1}) {
      if (length + 11 > 64) break;
      step(id, tokens);
    }
    // A selector cannot cut what the steps may have sealed.
    if constexpr (std::is_same_v<Cache, ClusterKVCache>) cache_.truncate(id, length);
    cache_.remove(id);
  }

  void step(SequenceId id, int tokens) {
    const StepRow row{.id = id, .num_new_tokens = tokens};
    if (plan_.num_rows() == 0) {
      plan_ = cache_.plan({&row, 1}, kLimits, {memory_, needs_.workspace_bytes});
    } else {
      cache_.update(plan_, {&row, 1});
    }
    const std::vector<float> rows(static_cast<std::size_t>(tokens) * 64, 0.5F), query(2 * 64, 0.5F);
    const TensorView key = contiguous_view(rows.data(), DType::kF32, {tokens, 1, 64});
    cache_.append(0, plan_, key, key);
    const TensorView q = contiguous_view(query.data(), DType::kF32, {1, 2, 64});
    const Selection selection = cache_.select(0, plan_, q);
    std::vector<std::int32_t> ids(1 * 2 * 64), counts(2);
    const std::int64_t heads = selection.cluster_ids.shape[1];
    cache_.token_ids(0, plan_, selection, contiguous_view(ids.data(), DType::kI32, {1, heads, 64}),
                     contiguous_view(counts.data(), DType::kI32, {1, heads}));
    for (std::int32_t i = 0; i < counts[0]; ++i) {
      require(ids[static_cast<std::size_t>(i)] < cache_.length(id), "a token that is not there");
    }
    if constexpr (std::is_same_v<Cache, ClusterKVCache>) {
      std::vector<float> out(2 * 64);
      cache_.attend(0, plan_, {q, {contiguous_view(out.data(), DType::kF32, {1, 2, 64}), {}}});
    }
  }

  Inline executor_;
  Cache cache_;
  MemoryNeeds needs_;
  std::byte* memory_;
  DecodePlan plan_;
  std::string message_;
};

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Target<ClusterKVCache> sparse(load_config(0)), dense(load_config(1));
  static Target<ClusterSelector> selector(load_config(0));
  if (size == 0) return 0;
  const auto* first = reinterpret_cast<const std::byte*>(data);
  const Bytes bytes(first + 1, first + size);
  switch (data[0] % 3) {
    case 0: sparse.run(bytes); break;
    case 1: dense.run(bytes); break;
    default: selector.run(bytes); break;
  }
  return 0;
}
