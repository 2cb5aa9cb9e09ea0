// SPDX-License-Identifier: Apache-2.0
//
// What may run at once: calls of different objects, and const calls of one. The thread sanitizer watches
// the same suite.
#include <gtest/gtest.h>

#include <functional>
#include <latch>
#include <span>
#include <thread>

#include "clusterkv/saved.hpp"
#include "tests/support/cache_fixture.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kThreads = 4;
constexpr int kPrompt = 230;

CacheConfig two_layers() {
  return small_config(small_model(2, 4, 2));
}

/// fn(thread) on all of them, from the same moment.
void at_once(const std::function<void(int)>& fn) {
  std::latch start(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      start.arrive_and_wait();
      fn(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// Everything that a sequence goes through. The cache has threads of its own.
std::vector<Output> life(std::uint64_t seed) {
  const auto pool = make_thread_pool(2);
  Driver<ClusterKVCache> h(two_layers(), {4, 1024, 0}, {Backend::kCpu, pool.get(), nullptr});
  const SequenceId parent = h.add(seed);
  h.prefill(parent, kPrompt);
  std::vector<Output> outputs = h.decode(parent);
  const SequenceId child = h.fork(parent, kPrompt - 20);
  for (const Output& output : h.decode(child)) outputs.push_back(output);
  h.cache.truncate(parent, kPrompt / 2);
  for (const Output& output : h.decode(parent)) outputs.push_back(output);
  h.cache.remove(child);
  return outputs;
}

TEST(Concurrency, CachesDoNotKnowOfEachOther) {
  std::vector<std::vector<Output>> alone;
  for (std::uint64_t i = 0; i < kThreads; ++i) alone.push_back(life(i));
  std::vector<std::vector<Output>> together(kThreads);
  at_once(
      [&](int i) { together[static_cast<std::size_t>(i)] = life(static_cast<std::uint64_t>(i)); });
  for (std::size_t i = 0; i < kThreads; ++i) EXPECT_TRUE(same_bits(together[i], alone[i])) << i;
}

/// What const calls say of one sequence, in the middle of a step.
struct Answers {
  std::vector<float> key, value;
  std::vector<std::int32_t> ids, counts;
  std::int64_t length = 0;
  std::int64_t scored_clusters = 0;
  bool operator==(const Answers&) const = default;
};

Answers ask(const Driver<ClusterKVCache>& h, SequenceId id, const Selection& selection) {
  const ClusterKVCache& cache = h.cache;
  const ModelShape& m = cache.config().model;
  Answers a;
  a.length = cache.length(id);
  a.scored_clusters = cache.stats().step.scored_clusters;
  const std::int64_t capacity = 512;
  a.ids.resize(static_cast<std::size_t>(m.num_kv_heads * capacity));
  a.counts.resize(static_cast<std::size_t>(m.num_kv_heads));
  cache.token_ids(1, h.plan, selection,
                  contiguous_view(a.ids.data(), DType::kI32, {1, m.num_kv_heads, capacity}),
                  contiguous_view(a.counts.data(), DType::kI32, {1, m.num_kv_heads}));
  const auto elements = static_cast<std::size_t>(kPrompt * m.num_kv_heads * m.head_dim);
  a.key.resize(elements);
  a.value.resize(elements);
  const auto view = [&](std::vector<float>& rows) {
    return contiguous_view(rows.data(), DType::kF32, {kPrompt, m.num_kv_heads, m.head_dim});
  };
  cache.read_rows(1, id, 0, kPrompt, view(a.key), view(a.value));
  return a;
}

TEST(Concurrency, ConstCallsRunBesideEachOther) {
  Driver<ClusterKVCache> h(two_layers());
  const SequenceId id = h.add(1);
  h.prefill(id, kPrompt);
  const SequenceId other = h.add(2);
  h.prefill(other, kPrompt);
  const auto save = [&] {
    std::vector<std::byte> bytes;
    h.cache.save(other, [&](std::span<const std::byte> part) {
      bytes.insert(bytes.end(), part.begin(), part.end());
    });
    return bytes;
  };
  const std::vector<std::byte> saved = save();
  h.begin({{.id = id}});
  h.append_all();
  const Selection selection = h.select(1);
  const Answers alone = ask(h, id, selection);
  ASSERT_GT(alone.counts[0], 0);
  std::vector<Answers> answers(kThreads);
  std::vector<std::vector<std::byte>> copies(kThreads);
  at_once([&](int i) {
    for (int turn = 0; turn < 20; ++turn) {
      answers[static_cast<std::size_t>(i)] = ask(h, id, selection);
      copies[static_cast<std::size_t>(i)] = save();
    }
  });
  for (int i = 0; i < kThreads; ++i) {
    EXPECT_EQ(answers[static_cast<std::size_t>(i)], alone) << i;
    EXPECT_EQ(copies[static_cast<std::size_t>(i)], saved) << i;
  }
}

}  // namespace
}  // namespace clusterkv::testing
