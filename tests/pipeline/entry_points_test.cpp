// SPDX-License-Identifier: Apache-2.0
//
// Every call with every tensor: wrong rank, extent, dtype, stride, device. Tables, so that a new
// argument is a new line. After each refusal a twin that never saw it gives the same bits.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "clusterkv/attention.hpp"
#include "tests/support/cache_fixture.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kMax = std::numeric_limits<int>::max();

/// A cache or selector in the middle of a step, and its twin.
template <class Cache>
class EntryPoints : public ::testing::Test {
 protected:
  EntryPoints() : one_(config()), twin_(config()) {
    for (Driver<Cache>* d : {&one_, &twin_}) {
      id_ = d->add(1);
      d->prefill(id_, 150);
      d->begin({{.id = id_}});
      d->append(0);
    }
    query_ = one_.queries(0);
    key_.assign(2 * 64, 0.5F);
    out_ = make_out(output_, 1, 4, 64);
  }

  void TearDown() override {
    one_.append(1);
    twin_.append(1);
    for (Driver<Cache>* d : {&one_, &twin_}) {
      d->begin({{.id = id_}});
      d->append_all();
    }
    EXPECT_EQ(copy_choice(one_.select(1)), copy_choice(twin_.select(1)));
    EXPECT_EQ(one_.positions(1, one_.select(1)), twin_.positions(1, twin_.select(1)));
    EXPECT_EQ(one_.cache.stats().appended_tokens, twin_.cache.stats().appended_tokens);
  }

  static CacheConfig config() { return small_config(small_model(2)); }
  TensorView query() { return one_.query_view(query_); }
  TensorView key() { return one_.kv_view(key_); }
  Selection selection() { return one_.cache.select(0, one_.plan, query()); }

  Driver<Cache> one_, twin_;
  SequenceId id_{};
  std::vector<float> query_, key_;
  Output output_;
  AttentionOut out_;
};

using Caches = ::testing::Types<ClusterKVCache, ClusterSelector>;
TYPED_TEST_SUITE(EntryPoints, Caches);

TYPED_TEST(EntryPoints, CheckEveryTensor) {
  auto& cache = this->one_.cache;
  auto& plan = this->one_.plan;
  expect_checked("key", this->key(), DType::kI32,
                 [&](TensorView t) { cache.append(1, plan, t, this->key()); });
  expect_checked("value", this->key(), DType::kI32,
                 [&](TensorView t) { cache.append(1, plan, this->key(), t); });
  expect_checked("query", this->query(), DType::kI32,
                 [&](TensorView t) { (void)cache.select(0, plan, t); });
  const Selection good = this->selection();
  std::vector<std::int32_t> ids(2 * 200), counts(2);
  const TensorView id_view = contiguous_view(ids.data(), DType::kI32, {1, 2, 200});
  const TensorView count_view = contiguous_view(counts.data(), DType::kI32, {1, 2});
  expect_checked("ids", id_view, DType::kF32,
                 [&](TensorView t) { cache.token_ids(0, plan, good, t, count_view); });
  expect_checked("counts", count_view, DType::kF32,
                 [&](TensorView t) { cache.token_ids(0, plan, good, id_view, t); });
  expect_checked("selection.cluster_ids", good.cluster_ids, DType::kF32, [&](TensorView t) {
    cache.token_ids(0, plan, {t, good.row_counts}, id_view, count_view);
  });
  expect_checked("selection.row_counts", good.row_counts, DType::kF32, [&](TensorView t) {
    cache.token_ids(0, plan, {good.cluster_ids, t}, id_view, count_view);
  });
}

TYPED_TEST(EntryPoints, CheckLayerAndStream) {
  auto& cache = this->one_.cache;
  auto& plan = this->one_.plan;
  Stream cuda;
  cuda.backend = Backend::kCuda;
  for (const int layer : {-1, 2, kMax, std::numeric_limits<int>::min()}) {
    const std::string part = "layer: " + std::to_string(layer);
    expect_error<ShapeError>([&] { cache.append(layer, plan, this->key(), this->key()); }, part);
    expect_error<ShapeError>([&] { (void)cache.select(layer, plan, this->query()); }, part);
    expect_error<ShapeError>([&] { cache.token_ids(layer, plan, {}, {}, {}); }, part);
  }
  expect_error<BackendUnavailable>([&] { cache.append(1, plan, this->key(), this->key(), cuda); },
                                   "stream");
  expect_error<BackendUnavailable>([&] { (void)cache.select(0, plan, this->query(), cuda); },
                                   "stream");
}

TYPED_TEST(EntryPoints, CheckPlansAndTheirOrder) {
  auto& cache = this->one_.cache;
  DecodePlan empty;
  expect_error<StepError>([&] { (void)cache.select(0, empty, this->query()); }, "plan");
  expect_error<StepError>([&] { cache.token_ids(0, empty, {}, {}, {}); }, "plan");
  expect_error<StepError>([&] { (void)cache.select(0, this->twin_.plan, this->query()); },
                          "another object");
  expect_error<StepError>([&] { (void)cache.select(1, this->one_.plan, this->query()); },
                          "layer: 1 was not appended");
  const StepRow row{.id = this->id_};
  expect_error<StepError>([&] { cache.update(this->one_.plan, {&row, 1}); }, "append() of layer 1");
  expect_error<StepError>(
      [&] {
        (void)cache.plan({&row, 1}, {1, 1, 0}, this->one_.workspace());
      },
      "append() of layer 1");
  expect_error<StepError>([&] { cache.append(0, this->one_.plan, this->key(), this->key()); },
                          "layer: 0 was appended already");
}

TYPED_TEST(EntryPoints, RefuseLimitsThatNoMemoryHolds) {
  const CacheConfig config = this->config();
  for (const PlanLimits& limits : {PlanLimits{0, 1, 0}, PlanLimits{-1, 1, 0}, PlanLimits{1, 0, 0},
                                   PlanLimits{1, -7, 0}, PlanLimits{1, 1, -1}}) {
    expect_error<ShapeError>([&] { (void)TypeParam::memory_needs(config, Backend::kCpu, limits); },
                             "limits");
  }
  for (const PlanLimits& limits : {PlanLimits{kMax, 1, 0}, PlanLimits{1, kMax, 0},
                                   PlanLimits{1, 1, kMax}, PlanLimits{kMax, kMax, kMax}}) {
    // Either refused or an amount that nobody has, but never a sum that wrapped round.
    try {
      const MemoryNeeds needs = TypeParam::memory_needs(config, Backend::kCpu, limits);
      EXPECT_GE(needs.workspace_bytes,
                TypeParam::memory_needs(config, Backend::kCpu, {1, 1, 0}).workspace_bytes);
    } catch (const Error&) {
    }
  }
  expect_error<BackendUnavailable>(
      [&] { (void)TypeParam::memory_needs(config, Backend::kCuda, {}); }, "CUDA");
  Resources cuda;
  cuda.backend = Backend::kCuda;
  expect_error<BackendUnavailable>([&] { TypeParam made(config, cuda); }, "CUDA");
}

using CacheCalls = EntryPoints<ClusterKVCache>;

TEST_F(CacheCalls, AttendChecksEveryTensor) {
  const Selection good = selection();
  const auto attend = [&](const AttendArgs& args) { one_.cache.attend(0, one_.plan, args); };
  const auto chosen = [&](const AttendArgs& args) {
    one_.cache.attend_selected(0, one_.plan, good, args);
  };
  for (const std::function<void(AttendArgs)>& call :
       {std::function<void(AttendArgs)>(attend), std::function<void(AttendArgs)>(chosen)}) {
    expect_checked("query", query(), DType::kI32, [&](TensorView t) { call({t, out_}); });
    expect_checked("out", out_.out, DType::kI32, [&](TensorView t) {
      call({query(), {t, out_.lse}});
    });
    expect_checked("lse", out_.lse, DType::kF16, [&](TensorView t) {
      call({query(), {out_.out, t}});
    });
    expect_last_stride_checked("out", out_.out, [&](TensorView t) {
      call({query(), {t, out_.lse}});
    });
    const std::vector<float> sinks(4);
    TensorView bad = contiguous_view(sinks.data(), DType::kF32, {4});
    bad.shape[0] = 3;
    expect_error<ShapeError>([&] { call({query(), out_, bad}); }, "sink_logits");
    bad = contiguous_view(sinks.data(), DType::kF16, {4});
    expect_error<DTypeError>([&] { call({query(), out_, bad}); }, "sink_logits");
  }
  EXPECT_EQ(output_.out, std::vector<float>(4 * 64, -7.0F)) << "a failed call wrote";
  EXPECT_EQ(output_.lse, std::vector<float>(4, -7.0F)) << "a failed call wrote";
}

TEST_F(CacheCalls, ReadRowsChecksEveryTensor) {
  std::vector<float> rows(3 * 2 * 64);
  const TensorView good = view3(rows, 3, 2, 64);
  const auto read = [&](const TensorView& k, const TensorView& v) {
    one_.cache.read_rows(0, id_, 5, 8, k, v);
  };
  expect_checked("key", good, DType::kI32, [&](TensorView t) { read(t, good); });
  expect_checked("value", good, DType::kI32, [&](TensorView t) { read(good, t); });
  expect_last_stride_checked("key", good, [&](TensorView t) { read(t, good); });
  expect_last_stride_checked("value", good, [&](TensorView t) { read(good, t); });
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  for (const auto& [first, last] : {std::pair{kHuge - 3, kHuge}, std::pair{-kHuge - 1, kHuge}}) {
    expect_error<ShapeError>([&] { one_.cache.read_rows(0, id_, first, last, good, good); },
                             "first, last");
  }
}

using SelectorCalls = EntryPoints<ClusterSelector>;

TEST_F(SelectorCalls, AttendTailChecksEveryTensor) {
  const Selection good = selection();
  const auto tail = [&](const TensorView& q, const AttentionOut& out) {
    one_.cache.attend_tail(0, one_.plan, good, q, out);
  };
  expect_checked("query", query(), DType::kI32, [&](TensorView t) { tail(t, out_); });
  expect_checked("out", out_.out, DType::kI32, [&](TensorView t) { tail(query(), {t, out_.lse}); });
  expect_checked("lse", out_.lse, DType::kF16, [&](TensorView t) { tail(query(), {out_.out, t}); });
  expect_checked("selection.cluster_ids", good.cluster_ids, DType::kF32, [&](TensorView t) {
    one_.cache.attend_tail(0, one_.plan, {t, good.row_counts}, query(), out_);
  });
  EXPECT_EQ(output_.out, std::vector<float>(4 * 64, -7.0F)) << "a failed call wrote";
}

TEST_F(SelectorCalls, ToPagedChecksEveryTensor) {
  const Selection good = selection();
  std::vector<std::int32_t> table(20, 3), starts(3), entries(400);
  const TensorView pages = contiguous_view(table.data(), DType::kI32, {1, 20});
  const TensorView indptr = contiguous_view(starts.data(), DType::kI32, {3});
  const TensorView indices = contiguous_view(entries.data(), DType::kI32, {400});
  const auto call = [&](TensorView p, int block, TensorView s, TensorView e) {
    one_.cache.to_paged(0, one_.plan, good, p, block, s, e);
  };
  call(pages, 16, indptr, indices);
  TensorView bad = pages;
  bad.shape[0] = 2;
  expect_error<ShapeError>([&] { call(bad, 16, indptr, indices); }, "block_table");
  bad = pages;
  bad.rank = 1;
  expect_error<ShapeError>([&] { call(bad, 16, indptr, indices); }, "block_table");
  bad = pages;
  bad.dtype = DType::kF32;
  expect_error<DTypeError>([&] { call(bad, 16, indptr, indices); }, "block_table");
  for (const int block : {0, -1}) {
    expect_error<ShapeError>([&] { call(pages, block, indptr, indices); }, "block_tokens");
  }
  expect_error<ShapeError>([&] { call(pages, 4, indptr, indices); }, "block_table");
  bad = indptr;
  bad.shape[0] = 2;
  expect_error<ShapeError>([&] { call(pages, 16, bad, indices); }, "indptr");
  bad = indptr;
  bad.dtype = DType::kF32;
  expect_error<DTypeError>([&] { call(pages, 16, bad, indices); }, "indptr");
  bad = indices;
  bad.shape[0] = 10;
  expect_error<ShapeError>([&] { call(pages, 16, indptr, bad); }, "indices");
  bad = indices;
  bad.dtype = DType::kF32;
  expect_error<DTypeError>([&] { call(pages, 16, indptr, bad); }, "indices");
  table[1] = -4;
  expect_error<ValueError>([&] { call(pages, 16, indptr, indices); }, "block_table");
  table[1] = kMax / 16;
  expect_error<ValueError>([&] { call(pages, 16, indptr, indices); }, "block_table");
  table[0] = kMax;
  expect_error<ValueError>([&] { call(pages, kMax, indptr, indices); }, "block_table");
}

TEST(ToPaged, RefusesEntriesBeyond64BitsToo) {
  Driver<ClusterSelector> d(small_config(small_model(1, 4, 4)));
  d.begin({{.id = d.add(1)}});
  d.append_all();
  const Selection one_token = d.select(0);
  const std::int32_t page = kMax;
  std::vector<std::int32_t> starts(5), entries(4);
  expect_error<ValueError>(
      [&] {
        d.cache.to_paged(0, d.plan, one_token, contiguous_view(&page, DType::kI32, {1, 1}), kMax,
                         contiguous_view(starts.data(), DType::kI32, {5}),
                         contiguous_view(entries.data(), DType::kI32, {4}));
      },
      "block_table");
}

TEST_F(SelectorCalls, ValuesAreGivenAlwaysOrNever) {
  expect_error<ShapeError>([&] { one_.cache.append(1, one_.plan, key(), {}); }, "value");
}

}  // namespace
}  // namespace clusterkv::testing
