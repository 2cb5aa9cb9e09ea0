// SPDX-License-Identifier: Apache-2.0
#include "clusterkv/error.hpp"

#include <gtest/gtest.h>

#include <new>
#include <string>
#include <type_traits>

namespace clusterkv {
namespace {

template <class E>
class ErrorTypes : public ::testing::Test {};

using AllErrors = ::testing::Types<ConfigError, ShapeError, DTypeError, ValueError, CapacityError,
                                   UnknownSequence, StepError, BackendUnavailable, OutOfMemory,
                                   FormatError, FileError>;
TYPED_TEST_SUITE(ErrorTypes, AllErrors);

TYPED_TEST(ErrorTypes, AreCaughtAsErrorAndKeepTheirMessage) {
  try {
    throw TypeParam("key: rank 2, expected 3");
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "key: rank 2, expected 3");
    return;
  }
  FAIL();
}

TYPED_TEST(ErrorTypes, AreRuntimeErrorsOfTheirOwn) {
  EXPECT_TRUE((std::is_base_of_v<std::runtime_error, TypeParam>));
  EXPECT_EQ((std::is_base_of_v<ConfigError, TypeParam>), (std::is_same_v<ConfigError, TypeParam>));
  EXPECT_EQ((std::is_base_of_v<ShapeError, TypeParam>), (std::is_same_v<ShapeError, TypeParam>));
  EXPECT_TRUE((std::is_nothrow_copy_constructible_v<TypeParam>));
}

}  // namespace
}  // namespace clusterkv
