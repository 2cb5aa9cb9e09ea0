// SPDX-License-Identifier: Apache-2.0
//
// Calls with a plan after one of its sequences was removed.
#include <gtest/gtest.h>

#include <functional>
#include <type_traits>
#include <vector>

#include "tests/support/cache_fixture.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {
namespace {

template <class Cache>
class RemovedMember : public ::testing::Test {
 protected:
  RemovedMember() {
    gone_ = d_.add(2);
    d_.begin({{d_.add(1), 100, 0, Phase::kPrefillLast}, {gone_, 100, 0, Phase::kPrefillLast}});
    d_.append_all();
    d_.begin({{.id = SequenceId{1}}, {.id = gone_}});
    d_.append_all();
    query_ = d_.queries(0);
    selection_ = d_.cache.select(0, d_.plan, d_.query_view(query_));
    out_ = make_out(output_, 2, 4, 64);
    d_.cache.remove(gone_);
  }
  void expect_stale(const std::function<void()>& call) {
    expect_error<StepError>(call, "plan: stale, sequence 0 was removed");
  }
  Driver<Cache> d_{small_config(small_model())};
  SequenceId gone_{};
  std::vector<float> query_;
  Selection selection_;
  Output output_;
  AttentionOut out_;
};

using BothCaches = ::testing::Types<ClusterKVCache, ClusterSelector>;
TYPED_TEST_SUITE(RemovedMember, BothCaches);

TYPED_TEST(RemovedMember, MakesItsPlanStale) {
  auto& d = this->d_;
  auto& cache = d.cache;
  const TensorView query = d.query_view(this->query_);
  const std::vector<float> row(2 * 2 * 64);
  const std::vector<std::int32_t> ints(1000);
  const auto list = [&](std::initializer_list<std::int64_t> shape) {
    return contiguous_view(ints.data(), DType::kI32, shape);
  };
  this->expect_stale([&] { cache.append(0, d.plan, d.kv_view(row), d.kv_view(row)); });
  this->expect_stale([&] { (void)cache.select(0, d.plan, query); });
  this->expect_stale([&] {
    cache.token_ids(0, d.plan, this->selection_, list({2, 2, 200}), list({2, 2}));
  });
  if constexpr (std::is_same_v<TypeParam, ClusterKVCache>) {
    this->expect_stale([&] { cache.attend(0, d.plan, {query, this->out_}); });
    this->expect_stale([&] {
      cache.attend_selected(0, d.plan, this->selection_, {query, this->out_});
    });
  } else {
    this->expect_stale([&] { cache.attend_tail(0, d.plan, this->selection_, query, this->out_); });
    this->expect_stale([&] {
      cache.to_paged(0, d.plan, this->selection_, list({2, 20}), 16, list({5}), list({900}));
    });
  }
  EXPECT_EQ(this->output_.out, std::vector<float>(2 * 4 * 64, -7.0F)) << "a failed call wrote";
  d.begin({{.id = SequenceId{1}}});  // the plan serves the others again
  d.append_all();
  EXPECT_EQ(cache.length(SequenceId{1}), 102);
}

}  // namespace
}  // namespace clusterkv::testing
