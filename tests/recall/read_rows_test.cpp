// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <tuple>

#include "kernels/recall/recall.hpp"
#include "tests/support/tensors.hpp"

namespace clusterkv::recall {
namespace {

using reference::Vec;
using testing::Layout;
using testing::OpCase;
using testing::Tensor;

constexpr int kHeads = 2;

void (*read_row_of(Backend))(const ReadParams&, int, std::uint32_t, std::int64_t) {
  return cpu().read_row;
}

class ReadRows : public ::testing::TestWithParam<std::tuple<OpCase, DType>> {};

TEST_P(ReadRows, GivesRowsBackAtTheirTokenAndTouchesNothingElse) {
  const auto& [op, to] = GetParam();
  testing::Random random(5);
  testing::TestRows store(op.dtype, op.dims(), kHeads, 40, random, 0);
  store.fill(random, 0, 40);
  for (const Layout layout : {Layout::kTokenMajor, Layout::kHeadMajor, Layout::kPadded}) {
    Tensor key(to, 6, kHeads, op.head_dim, layout, random);
    Tensor value(to, 6, kHeads, op.dims().value, layout, random);
    const Vec other_key = key.row(4, 0);
    const Vec other_value = value.row(2, 1);
    read_row_of(op.backend)({store.view(), key.view(), value.view()}, 1, store.row_of(33), 4);
    const Vec want_key = store.key(1, 33);
    const Vec want_value = store.value(1, 33);
    for (std::size_t d = 0; d < want_key.size(); ++d) {
      EXPECT_EQ(key.row(4, 1)[d], reference::rounded(to, want_key[d]));
    }
    for (std::size_t d = 0; d < want_value.size(); ++d) {
      EXPECT_EQ(value.row(4, 1)[d], reference::rounded(to, want_value[d]));
    }
    EXPECT_EQ(key.row(4, 0), other_key);
    EXPECT_EQ(value.row(2, 1), other_value);
    EXPECT_TRUE(key.bytes().guards_intact());
    EXPECT_TRUE(value.bytes().guards_intact());
  }
}

std::string name_of_param(const ::testing::TestParamInfo<std::tuple<OpCase, DType>>& info) {
  return testing::name_of(std::get<0>(info.param)) + "_to_" +
         testing::name_of(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(Ops, ReadRows,
                         ::testing::Combine(::testing::ValuesIn(testing::value_op_cases()),
                                            ::testing::Values(DType::kF32, DType::kF16,
                                                              DType::kBF16)),
                         name_of_param);

}  // namespace
}  // namespace clusterkv::recall
