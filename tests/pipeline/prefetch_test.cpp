// SPDX-License-Identifier: Apache-2.0
//
// prefetch() where there is nothing to bring: it checks its arguments and changes nothing. Of the C++ API
// and of the C API.
#include <gtest/gtest.h>

#include "tests/support/c_cache.hpp"
#include "tests/support/cache_fixture.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {
namespace {

template <class Cache>
class Prefetch : public ::testing::Test {
 protected:
  static constexpr PlanLimits kLimits{.max_rows = 4, .max_new_tokens = 1024, .prefetch = true};

  Prefetch() : one_(config(), kLimits), twin_(config()) {
    for (Driver<Cache>* d : {&one_, &twin_}) {
      id_ = d->add(1);
      d->prefill(id_, 150);
      d->begin({{.id = id_}});
      d->append(0);
    }
  }
  void TearDown() override {
    for (Driver<Cache>* d : {&one_, &twin_}) d->append(1);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(one_.decode(id_), twin_.decode(id_)));
    const CacheStats a = one_.cache.stats(), b = twin_.cache.stats();
    EXPECT_EQ(a.total.quad_misses, b.total.quad_misses);
    EXPECT_EQ(a.total.quad_hits, b.total.quad_hits);
    EXPECT_GT(a.total.quad_misses, 0);
  }
  static CacheConfig config() {
    CacheConfig config = small_config(small_model(2));
    config.store.residency = Residency::kHost;
    return config;
  }

  Driver<Cache> one_, twin_;
  SequenceId id_{};
};

using Apis = ::testing::Types<ClusterKVCache, CCache>;
TYPED_TEST_SUITE(Prefetch, Apis);

TYPED_TEST(Prefetch, ChangesNothing) {
  auto& d = this->one_;
  std::vector<float> hint = d.queries(1);
  d.cache.prefetch(1, d.plan, d.query_view(hint));  // not appended yet
  for (float& x : hint) x = -x;
  for (const int layer : {0, 1}) d.cache.prefetch(layer, d.plan, d.query_view(hint));
}

TYPED_TEST(Prefetch, RefusesCallsThatMakeNoSense) {
  auto& d = this->one_;
  const std::vector<float> hint = d.queries(1);
  const TensorView good = d.query_view(hint);
  const auto call = [&](int layer, const auto& plan, const TensorView& view) {
    d.cache.prefetch(layer, plan, view);
  };
  for (const int layer : {-1, 2}) {
    expect_error<ShapeError>([&] { call(layer, d.plan, good); }, "layer: ");
  }
  expect_error<StepError>([&] { call(1, this->twin_.plan, good); }, "another object");
  expect_error<StepError>(
      [&] { this->twin_.cache.prefetch(1, this->twin_.plan, this->twin_.query_view(hint)); },
      "limits.prefetch");
  TensorView bad = good;
  bad.shape[1] = 5;
  expect_error<ShapeError>([&] { call(1, d.plan, bad); }, "query_hint");
  bad = good;
  bad.dtype = DType::kI32;
  expect_error<DTypeError>([&] { call(1, d.plan, bad); }, "query_hint");
  Stream cuda;
  cuda.backend = Backend::kCuda;
  expect_error<BackendUnavailable>([&] { d.cache.prefetch(1, d.plan, good, cuda); }, "stream");
}

}  // namespace
}  // namespace clusterkv::testing
