// SPDX-License-Identifier: Apache-2.0
//
// One scene, told in many ways: every way gives the same bits.
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "tests/support/cache_fixture.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kPrompt = 230;
constexpr int kDecoded = 60;

/// Keys, values and queries of one sequence.
struct Story {
  explicit Story(std::uint64_t seed, const ModelShape& m) {
    Random random(seed);
    const auto rows = static_cast<std::size_t>((kPrompt + kDecoded) * m.num_kv_heads * m.head_dim);
    key = random.normals(rows);
    value = random.normals(rows);
    query = random.normals(static_cast<std::size_t>(kDecoded * m.num_q_heads * m.head_dim), 2.0F);
  }
  std::vector<float> key, value, query;
};

std::vector<float> part(const std::vector<float>& all, int first, int last, int width) {
  return {all.begin() + std::ptrdiff_t{first} * width, all.begin() + std::ptrdiff_t{last} * width};
}

struct Way {
  std::vector<int> chunks = {kPrompt};
  Executor* executor = nullptr;
  Executor* call_executor = nullptr;
  std::function<void()> after_call = [] {};
  int others = 0;         ///< sequences that share the batch
  bool last_row = false;  ///< ours is the last row of the batch
};

/// Outputs of all decode steps of story 1.
std::vector<Output> tell(const CacheConfig& config, const Way& way) {
  const ModelShape& m = config.model;
  const int width = m.num_kv_heads * m.head_dim;
  std::vector<Story> stories;
  for (int i = 0; i <= way.others; ++i) stories.emplace_back(static_cast<std::uint64_t>(i + 1), m);
  Harness<ClusterKVCache> h(config, {4, 4 * kPrompt, 0}, {Backend::kCpu, way.executor, nullptr});
  std::vector<SequenceId> ids;
  for (int i = 0; i <= way.others; ++i) ids.push_back(h.cache.add_sequence());
  Stream stream;
  stream.executor = way.call_executor;
  std::vector<int> order;
  for (int i = 0; i <= way.others; ++i) order.push_back(way.last_row ? way.others - i : i);

  const auto step = [&](int first, int last, Phase phase, int queries) {
    std::vector<StepRow> rows;
    std::vector<float> key, value;
    for (const int i : order) {
      rows.push_back({ids[static_cast<std::size_t>(i)], last - first, queries, phase, 0});
      const Story& s = stories[static_cast<std::size_t>(i)];
      const auto k = part(s.key, first, last, width);
      const auto v = part(s.value, first, last, width);
      key.insert(key.end(), k.begin(), k.end());
      value.insert(value.end(), v.begin(), v.end());
    }
    h.begin(rows);
    for (int layer = 0; layer < m.num_layers; ++layer) {
      h.append(layer, key, value, stream);
      way.after_call();
    }
  };
  int token = 0;
  for (std::size_t i = 0; i < way.chunks.size(); ++i) {
    const bool last = i + 1 == way.chunks.size();
    step(token, token + way.chunks[i], last ? Phase::kPrefillLast : Phase::kPrefill, 0);
    token += way.chunks[i];
  }
  std::vector<Output> outputs;
  const int out_width = m.num_q_heads * m.head_dim;
  for (int i = 0; i < kDecoded; ++i, ++token) {
    step(token, token + 1, Phase::kDecode, 1);
    std::vector<float> query;
    for (const int s : order) {
      const auto q = part(stories[static_cast<std::size_t>(s)].query, i, i + 1, out_width);
      query.insert(query.end(), q.begin(), q.end());
    }
    for (int layer = 0; layer < m.num_layers; ++layer) {
      const Output all = h.attend(layer, query, stream);
      way.after_call();
      const int at = way.last_row ? way.others : 0;
      outputs.push_back(
          {part(all.out, at, at + 1, out_width), part(all.lse, at, at + 1, m.num_q_heads)});
    }
  }
  return outputs;
}

class SameBits : public ::testing::TestWithParam<std::tuple<HeadGrouping, IndexDType, DType>> {
 protected:
  SameBits() : config_(small_config(small_model(2, 6, 2))) {
    config_.model.kv_dtype = std::get<2>(GetParam());
    config_.select.grouping = std::get<0>(GetParam());
    config_.cluster.index_dtype = std::get<1>(GetParam());
    config_.select.dense_layers = 1;
  }
  void expect_same(const CacheConfig& config, const Way& way) {
    EXPECT_EQ(tell(config_, {}), tell(config, way));
  }
  CacheConfig config_;
};

TEST_P(SameBits, OnEveryRun) {
  expect_same(config_, {});
}

TEST_P(SameBits, ForAnyNumberOfThreads) {
  for (const int threads : {1, 2, 3}) {
    const auto pool = make_thread_pool(threads);
    expect_same(config_, {.executor = pool.get()});
  }
}

/// Runs tasks last to first.
class Backwards final : public Executor {
 public:
  [[nodiscard]] int concurrency() const noexcept override { return 5; }
  void run(int num_tasks, void (*task)(void*, int), void* arg) override {
    for (int i = num_tasks; i-- > 0;) task(arg, i);
  }
};

/// A new thread for each quarter of the tasks.
class ThreadEach final : public Executor {
 public:
  [[nodiscard]] int concurrency() const noexcept override { return 4; }
  void run(int num_tasks, void (*task)(void*, int), void* arg) override {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([=] {
        for (int i = t; i < num_tasks; i += 4) task(arg, i);
      });
    }
  }
};

TEST_P(SameBits, WithAForeignExecutor) {
  Backwards backwards;
  expect_same(config_, {.executor = &backwards});
  ThreadEach each;
  expect_same(config_, {.call_executor = &each});
}

TEST_P(SameBits, WithLentThreads) {
  LentThreads lent(3);
  std::atomic<bool> stop{false};
  std::vector<std::jthread> helpers;
  for (int i = 0; i < 2; ++i) {
    helpers.emplace_back([&] {
      for (int operation = 0; !stop; ++operation) lent.serve(operation);
    });
  }
  expect_same(config_, {.call_executor = &lent, .after_call = [&] { lent.release(); }});
  stop = true;
  lent.release();
}

TEST_P(SameBits, ForAnyBatch) {
  expect_same(config_, {.others = 2});
  expect_same(config_, {.others = 2, .last_row = true});
}

/// Companions of other lengths and in other phases: one decodes, one is still in its prompt, one asks
/// nothing, one row is padding.
TEST_P(SameBits, BesideRaggedCompanions) {
  Driver<ClusterKVCache> alone(config_), ragged(config_, {5, 1024, 0});
  const SequenceId single = alone.add(1);
  alone.prefill(single, kPrompt);
  const SequenceId shorter = ragged.add(2), ours = ragged.add(1), longer = ragged.add(3),
                   silent = ragged.add(4);
  ragged.prefill(shorter, 57);
  ragged.begin(
      {{shorter}, {longer, 40, 0, Phase::kPrefill}, {ours, kPrompt, 0, Phase::kPrefillLast}});
  ragged.append_all();
  for (int i = 0; i < kDecoded; ++i) {
    const auto wanted = alone.decode(single);
    const auto all = ragged.step({{shorter},
                                  {longer, 17, i % 2, Phase::kPrefill},
                                  {kNoSequence, 3, 0},
                                  {ours},
                                  {silent, 1, 0}});
    for (std::size_t layer = 0; layer < wanted.size(); ++layer) {
      ASSERT_TRUE(same_bits({output_row(all[layer], 1 + i % 2, 6)}, {wanted[layer]}))
          << "step " << i << ", layer " << layer;
    }
  }
}

TEST_P(SameBits, ForAnyCutOfThePrompt) {
  expect_same(config_, {.chunks = {100, 100, 30}});
  expect_same(config_, {.chunks = {96, 96, 38}});
  std::vector<int> sevens(kPrompt / 7, 7);
  sevens.push_back(kPrompt % 7);
  expect_same(config_, {.chunks = sevens});
  expect_same(config_, {.chunks = std::vector<int>(kPrompt, 1)});
}

TEST_P(SameBits, InAllResidenciesAndRetentions) {
  for (const std::size_t device_bytes : {1, 450000, 900000, 1200000}) {
    CacheConfig hybrid = config_;
    hybrid.store.residency = Residency::kHybrid;
    hybrid.store.device_bytes = device_bytes;
    expect_same(hybrid, {});
  }
  for (const std::size_t device_bytes : {std::size_t{0}, std::size_t{15000}}) {
    for (const Retention retention : {Retention::kLru, Retention::kRetainSteps}) {
      CacheConfig host = config_;
      host.store.residency = Residency::kHost;
      host.store.device_bytes = device_bytes;
      host.store.retention = retention;
      expect_same(host, {});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Configurations, SameBits,
    ::testing::Values(std::tuple(HeadGrouping::kShared, IndexDType::kInt8, DType::kBF16),
                      std::tuple(HeadGrouping::kPerQueryHead, IndexDType::kInt8, DType::kF16),
                      std::tuple(HeadGrouping::kShared, IndexDType::kF32, DType::kF32)));

}  // namespace
}  // namespace clusterkv::testing
