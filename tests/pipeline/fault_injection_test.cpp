// SPDX-License-Identifier: Apache-2.0
//
// Every call fails at each of its allocations in turn, of operator new and of the memory resource; and
// at each request to the disk of a cold store.
// After a failure nothing that counts has changed; the same call then goes well, and the sequences
// answer with the bits of a cache in which nothing ever failed.
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <optional>

#include "tests/pipeline/lineage.hpp"
#include "tests/pipeline/news.hpp"
#include "tests/support/disk.hpp"

namespace clusterkv::testing {
namespace {

class Inline final : public Executor {
 public:
  [[nodiscard]] int concurrency() const noexcept override { return 2; }
  void run(int num_tasks, void (*task)(void*, int), void* arg) override {
    for (int i = 0; i < num_tasks; ++i) task(arg, i);
  }
};

/// Fails at the same number as operator new: it takes its memory there. Alternates between null and
/// what was thrown.
class Memory final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t alignment, Device) override {
    try {
      void* data = operator new (bytes, std::align_val_t{alignment});
      ++live;
      return data;
    } catch (const std::bad_alloc&) {
      if ((++failures) % 2 == 0) throw;
      return nullptr;
    }
  }
  void deallocate(void* data, std::size_t, std::size_t alignment, Device) noexcept override {
    --live;
    operator delete (data, std::align_val_t{alignment});
  }
  int live = 0;
  int failures = 0;
};

template <class Cache>
bool same_counts(const CacheStats& before, const Cache& cache) {
  const CacheStats after = cache.stats();
  return std::memcmp(&before, &after, sizeof after) == 0;
}

enum class Faults : std::uint8_t { kNone, kOfMemory, kOfDisk };

/// A life in which calls fail before they go well, or never fail.
template <class Cache>
class Life {
 public:
  Life(const CacheConfig& config, Faults faults)
      : faults_(faults), config_(config), source_(config.model, 1) {}
  ~Life() { plan_ = {}; }
  Life(const Life&) = delete;
  Life& operator=(const Life&) = delete;

  void run() {
    on_ = {Backend::kCpu, &executor_, &memory_};
    attempt("constructor", [&] { cache_.emplace(config_, on_); });
    const MemoryNeeds needs = Cache::memory_needs(config_, Backend::kCpu, kLimits);
    scratch_ = aligned_bytes(needs.workspace_bytes);
    workspace_ = {scratch_.get(), needs.workspace_bytes, nullptr, 0};
    SequenceId a{}, b{}, child{}, back{};
    attempt("add_sequence", [&] { a = cache_->add_sequence(); });
    attempt("add_sequence", [&] { b = cache_->add_sequence(); });
    step({{a, 500, 0, Phase::kPrefill}, {b, 30, 1, Phase::kPrefillLast}});
    step({{a, 140, 1, Phase::kPrefillLast}});
    for (int i = 0; i < 30; ++i) step({{.id = a}, {.id = b}});
    attempt("fork", [&] { child = cache_->fork(a, cut_); });
    for (int i = 0; i < 3; ++i) step({{.id = child}, {.id = a}});
    attempt("truncate", [&] { cache_->truncate(a, cut_); });
    plan_ = {};  // the next step makes a plan
    for (int i = 0; i < 30; ++i) step({{.id = a}, {.id = child}});
    saved_.reserve(1 << 20);
    attempt("save", [&] {
      saved_.clear();
      cache_->save(a, [this](std::span<const std::byte> part) {
        saved_.insert(saved_.end(), part.begin(), part.end());
      });
    });
    attempt("remove", [&] { cache_->remove(b); });
    attempt("load", [&] {
      std::size_t at = 0;
      back = cache_->load([this, &at](std::span<std::byte> to) {
        std::copy_n(saved_.begin() + static_cast<std::ptrdiff_t>(at), to.size(), to.begin());
        at += to.size();
        return to.size();
      });
    });
    for (int i = 0; i < 30; ++i) step({{.id = back}, {.id = a}});
    ids = {a, b, child, back};
    stats = cache_->stats();
  }

  std::vector<Output> outputs;
  std::vector<std::vector<std::int32_t>> tokens;
  std::vector<SequenceId> ids;
  CacheStats stats;
  int failures = 0;

 private:
  static constexpr PlanLimits kLimits{2, 640, 0, 1, 4000};
  static constexpr bool kHasRows = std::is_same_v<Cache, ClusterKVCache>;

  void begin_failing(int number) const {
    faults_ == Faults::kOfMemory ? fail_new(number) : fail_disk(number);
  }
  [[nodiscard]] bool end_failing() const {
    return faults_ == Faults::kOfMemory ? end_failing_new() : end_failing_disk();
  }

  /// call() with a failure at its first allocation or request, its second, … until none is left.
  template <class Call>
  void attempt(const char* what, const Call& call) {
    for (int number = 0; faults_ != Faults::kNone; ++number) {
      const CacheStats before = cache_.has_value() ? cache_->stats() : CacheStats{};
      const int memory_before = memory_.live;
      bool has_thrown = false;
      begin_failing(number);
      try {
        call();
      } catch (const std::bad_alloc&) {
        has_thrown = true;
      } catch (const OutOfMemory&) {
        has_thrown = true;
      } catch (const FileError&) {
        has_thrown = true;
      }
      const bool has_failed = end_failing();
      ASSERT_EQ(has_thrown, has_failed) << what << ", number " << number;
      if (!has_failed) return;
      ++failures;
      if (cache_.has_value()) {
        ASSERT_TRUE(same_counts(before, *cache_)) << what << ", number " << number;
      }
      ASSERT_EQ(memory_.live, memory_before) << what << ", number " << number;
    }
    if (faults_ == Faults::kNone) call();
  }

  void step(const std::vector<StepRow>& rows) {
    attempt("plan or update", [&] {
      if (plan_.num_rows() == 0) {
        plan_ = cache_->plan(rows, kLimits, workspace_);
      } else {
        cache_->update(plan_, rows);
      }
    });
    for (int layer = 0; layer < config_.model.num_layers; ++layer) {
      std::vector<float> key, value, query;
      for (const StepRow& row : rows) {
        const std::int64_t last = cache_->length(row.id);
        const auto extend = [](std::vector<float>& all, const std::vector<float>& more) {
          all.insert(all.end(), more.begin(), more.end());
        };
        extend(key, source_.keys(layer, last - row.num_new_tokens, last));
        extend(value, source_.values(layer, last - row.num_new_tokens, last));
        if (row.num_query_tokens > 0) extend(query, source_.query(layer, last - 1));
      }
      const std::int64_t count = plan_.num_new_tokens();
      const TensorView k = view3(key, count, 2, 64), v = view3(value, count, 2, 64);
      attempt("append", [&] { cache_->append(layer, plan_, k, v); });
      if (layer == 1) use(view3(query, plan_.num_query_tokens(), 6, 64));
    }
  }

  void use(const TensorView& query) {
    Output output;
    const AttentionOut out = make_out(output, plan_.num_query_tokens(), 6, 64);
    Selection selection;
    attempt("select", [&] { selection = cache_->select(1, plan_, query); });
    std::vector<std::int32_t> listed(static_cast<std::size_t>(plan_.num_rows() * 2 * 700));
    std::vector<std::int32_t> counts(static_cast<std::size_t>(plan_.num_rows() * 2));
    const auto id_view = contiguous_view(listed.data(), DType::kI32, {plan_.num_rows(), 2, 700});
    const auto count_view = contiguous_view(counts.data(), DType::kI32, {plan_.num_rows(), 2});
    attempt("token_ids", [&] { cache_->token_ids(1, plan_, selection, id_view, count_view); });
    tokens.push_back(listed);
    if constexpr (kHasRows) {
      attempt("attend", [&] { cache_->attend(1, plan_, {query, out}); });
      outputs.push_back(output);
      attempt("select", [&] { selection = cache_->select(1, plan_, query); });
      attempt("attend_selected", [&] {
        cache_->attend_selected(1, plan_, selection, {query, out});
      });
    } else {
      attempt("attend_tail", [&] { cache_->attend_tail(1, plan_, selection, query, out); });
    }
    outputs.push_back(output);
  }

  Faults faults_;
  CacheConfig config_;
  TokenSource source_;
  Inline executor_;
  Memory memory_;
  Resources on_;
  std::optional<Cache> cache_;
  AlignedBytes scratch_;
  Workspace workspace_;
  DecodePlan plan_;
  std::vector<std::byte> saved_;
  std::int64_t cut_ = kHasRows ? 150 : 640;  // inside a segment; a selector has none to cut
};

/// What a failed read may leave in the slots is no state that counts.
CacheStats without_recall(CacheStats stats) {
  for (StepStats* s : {&stats.total, &stats.step}) {
    s->quad_hits = s->quad_misses = s->quads_in_place = s->copied_bytes = 0;
  }
  return stats;
}

template <class Cache>
void compare(const CacheConfig& config, Faults faults = Faults::kOfMemory) {
  const long long before = live_news();
  {
    Life<Cache> unharmed(config, Faults::kNone), harmed(config, faults);
    unharmed.run();
    harmed.run();
    if (faults == Faults::kOfDisk) {
      unharmed.stats = without_recall(unharmed.stats);
      harmed.stats = without_recall(harmed.stats);
    }
    EXPECT_TRUE(same_bits(harmed.outputs, unharmed.outputs));
    EXPECT_EQ(harmed.tokens, unharmed.tokens);
    EXPECT_EQ(harmed.ids, unharmed.ids) << "a call that failed has used up an id";
    EXPECT_EQ(std::memcmp(&harmed.stats, &unharmed.stats, sizeof harmed.stats), 0);
    EXPECT_GT(harmed.failures, 80);
    std::printf("%d failures\n", harmed.failures);
  }
  EXPECT_EQ(live_news(), before) << "something is not given back";
}

class FaultInjectionIn : public Lineage {};
INSTANTIATE_TEST_SUITE_P(Residencies, FaultInjectionIn, kResidencies, name_of);

TEST_P(FaultInjectionIn, AtEveryAllocationOfACacheLeavesItAsItWas) {
  if (!kCountsNews) GTEST_SKIP() << "a sanitizer has an operator new of its own";
  for (const int segment_tokens : {96, 0}) {
    config_.cluster.segment_tokens = segment_tokens;
    compare<ClusterKVCache>(config_);
    config_.store.live_tokens = 700;
    compare<ClusterKVCache>(config_);
    config_.store.live_tokens = 0;
  }
}

TEST(FaultInjection, AtEveryAllocationWithAColdStoreLeavesACacheAsItWas) {
  if (!kCountsNews) GTEST_SKIP() << "a sanitizer has an operator new of its own";
  const Directory directory;
  CacheConfig config = config_of(Residency::kHost);
  config.store.cold_path = directory.path();
  compare<ClusterKVCache>(config);
}

TEST(FaultInjection, AtEveryRequestToTheDiskLeavesACacheAsItWas) {
  const Directory directory;
  CacheConfig config = config_of(Residency::kHost);
  config.store.cold_path = directory.path();
  for (const std::size_t device_bytes : {0, 30000}) {
    config.store.device_bytes = device_bytes;
    compare<ClusterKVCache>(config, Faults::kOfDisk);
  }
}

TEST_P(FaultInjectionIn, AtEveryAllocationOfASelectorLeavesItAsItWas) {
  if (!kCountsNews) GTEST_SKIP() << "a sanitizer has an operator new of its own";
  compare<ClusterSelector>(config_);
}

}  // namespace
}  // namespace clusterkv::testing
