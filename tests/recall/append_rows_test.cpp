// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "kernels/recall/recall.hpp"
#include "tests/support/tensors.hpp"

namespace clusterkv::recall {
namespace {

using reference::Vec;
using testing::Layout;
using testing::OpCase;
using testing::Tensor;

struct Ops {
  void (*append_rows)(const AppendParams&, int);
  bool (*all_finite)(const TensorView&, std::int64_t, std::int64_t);
};
Ops ops_of(Backend) {
  return {cpu().append_rows, cpu().all_finite};
}

constexpr int kHeads = 3;
constexpr int kTokens = 100;
constexpr std::size_t kPadding = 0;  // rows are what two vectors take
constexpr std::int64_t kFirstRow = 199;

/// Store dtype and head_dim come from the case; the tensor's dtype is the second parameter.
class AppendRows : public ::testing::TestWithParam<std::tuple<OpCase, DType>> {
 protected:
  static OpCase op() { return std::get<0>(GetParam()); }
  static DType from() { return std::get<1>(GetParam()); }

  AppendParams params(Tensor& key, Tensor* value, std::int64_t first, int count) {
    return {key.view(),   value == nullptr ? TensorView{} : value->view(),
            first,        count,
            live.pages(), kFirstRow,
            live.view()};
  }
  void expect_row(int head, std::int64_t row, const Vec& key, const Vec& value) {
    const Vec got_key = live.key(head, row);
    const Vec got_value = live.value(head, row);
    for (std::size_t d = 0; d < key.size(); ++d) {
      ASSERT_EQ(got_key[d], reference::rounded(op().dtype, key[d]));
    }
    ASSERT_EQ(got_value.size(), value.size());
    for (std::size_t d = 0; d < value.size(); ++d) {
      ASSERT_EQ(got_value[d], reference::rounded(op().dtype, value[d]));
    }
  }

  testing::Random random{3};
  testing::TestRows live{op().dtype, op().dims(), kHeads, kFirstRow + kTokens, random, kPadding};
};

TEST_P(AppendRows, RoundsOnceWhateverTheStrides) {
  for (const Layout layout : {Layout::kTokenMajor, Layout::kHeadMajor, Layout::kStrided}) {
    Tensor key(from(), kTokens, kHeads, op().head_dim, layout, random);
    Tensor value(from(), kTokens, kHeads, op().dims().value, layout, random);
    const auto before = live.snapshot();
    std::set<std::pair<int, std::int64_t>> written;
    for (int head = 0; head < kHeads; ++head) {
      ops_of(op().backend).append_rows(params(key, &value, 7, kTokens - 7), head);
      for (int i = 0; i < kTokens - 7; ++i) {
        expect_row(head, kFirstRow + i, key.row(7 + i, head), value.row(7 + i, head));
        written.insert({head, kFirstRow + i});
      }
    }
    EXPECT_TRUE(live.same_but(before, written));
  }
}

TEST_P(AppendRows, WithoutValuesStoresZero) {
  Tensor key(from(), 5, kHeads, op().head_dim, Layout::kTokenMajor, random);
  ops_of(op().backend).append_rows(params(key, nullptr, 0, 5), 2);
  expect_row(2, kFirstRow + 4, key.row(4, 2), Vec(static_cast<std::size_t>(op().dims().value)));
}

TEST_P(AppendRows, HandlesZeroTokens) {
  Tensor key(from(), 1, kHeads, op().head_dim, Layout::kTokenMajor, random);
  const auto before = live.snapshot();
  ops_of(op().backend).append_rows(params(key, &key, 0, 0), 1);
  EXPECT_TRUE(live.same_but(before, {}));
}

TEST_P(AppendRows, OneHeadLeavesTheOthersUntouched) {
  Tensor key(from(), 9, kHeads, op().head_dim, Layout::kStrided, random);
  Tensor value(from(), 9, kHeads, op().dims().value, Layout::kStrided, random);
  const auto before = live.snapshot();
  ops_of(op().backend).append_rows(params(key, &value, 2, 4), 1);
  EXPECT_TRUE(live.same_but(
      before, {{1, kFirstRow}, {1, kFirstRow + 1}, {1, kFirstRow + 2}, {1, kFirstRow + 3}}));
}

TEST_P(AppendRows, FindsEveryNonFiniteElementInRangeAndNoneOutside) {
  for (const Layout layout : {Layout::kTokenMajor, Layout::kStrided}) {
    Tensor tensor(from(), 10, kHeads, op().head_dim, layout, random);
    const auto all_finite = ops_of(op().backend).all_finite;
    EXPECT_TRUE(all_finite(tensor.view(), 0, 10));
    for (const double bad : {double{NAN}, double{INFINITY}, -double{INFINITY}}) {
      for (const auto& [token, head, d] : {std::tuple{3, 0, 0}, {6, 2, op().head_dim - 1}}) {
        const double old = tensor.row(token, head)[static_cast<std::size_t>(d)];
        tensor.set(token, head, d, bad);
        EXPECT_FALSE(all_finite(tensor.view(), 3, 4));
        EXPECT_EQ(all_finite(tensor.view(), 4, 2), true);
        EXPECT_TRUE(all_finite(tensor.view(), 0, 3));
        EXPECT_TRUE(all_finite(tensor.view(), 7, 3));
        tensor.set(token, head, d, old);
      }
    }
    EXPECT_TRUE(all_finite(tensor.view(), 0, 0));
  }
}

TEST(AllFinite, TheLargestNumbersAreFinite) {
  testing::Random random(4);
  Tensor tensor(DType::kF32, 2, 1, 64, Layout::kTokenMajor, random);
  for (int d = 0; d < 64; ++d) {
    tensor.set(1, 0, d, double{std::numeric_limits<float>::max()} * (d % 2 == 0 ? 1 : -1));
  }
  EXPECT_TRUE(cpu().all_finite(tensor.view(), 0, 2));
}

std::string name_of_param(const ::testing::TestParamInfo<std::tuple<OpCase, DType>>& info) {
  return testing::name_of(std::get<0>(info.param)) + "_from_" +
         testing::name_of(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(Ops, AppendRows,
                         ::testing::Combine(::testing::ValuesIn(testing::value_op_cases()),
                                            ::testing::Values(DType::kF32, DType::kF16,
                                                              DType::kBF16)),
                         name_of_param);

}  // namespace
}  // namespace clusterkv::recall
