// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/dispatch.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "clusterkv/error.hpp"

namespace clusterkv {
namespace {

using ::testing::HasSubstr;

TEST(DispatchValue, CallsOnceWithTheValueAsAConstant) {
  int calls = 0;
  int seen = 0;
  dispatch_value<3, 5, 7>("n", 5, [&](auto n) {
    static_assert(decltype(n)::value != 4);
    seen = n;
    ++calls;
  });
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(seen, 5);
}

TEST(DispatchValue, NamesWhatIsSupported) {
  int calls = 0;
  try {
    dispatch_value<3, 5>("group", 4, [&](auto) { ++calls; });
    FAIL() << "did not throw";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("group=4"));
    EXPECT_THAT(error.what(), HasSubstr("3, 5"));
  }
  EXPECT_EQ(calls, 0);
}

TEST(DispatchValue, PassesExceptionsOn) {
  EXPECT_THROW(dispatch_value<1>("n", 1, [](auto) { throw 42; }), int);
}

TEST(DispatchHeadDim, SupportsFiveAndRejectsHeadDim72) {
  for (const int dim : {64, 80, 96, 128, 256}) {
    dispatch_head_dim(dim, [&](auto d) { EXPECT_EQ(d, dim); });
  }
  for (const int dim : {72, 0, -64, 63, 65, 112, 192, 512}) {
    EXPECT_THROW(dispatch_head_dim(dim, [](auto) {}), ConfigError) << dim;
  }
}

TEST(DispatchRowDtype, RejectsIntegers) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    dispatch_row_dtype(dtype, [&](auto d) { EXPECT_EQ(decltype(d)::value, dtype); });
  }
  EXPECT_THROW(dispatch_row_dtype(DType::kI32, [](auto) {}), ConfigError);
}

}  // namespace
}  // namespace clusterkv
