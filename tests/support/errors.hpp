// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "clusterkv/error.hpp"
#include "clusterkv/types.hpp"

namespace clusterkv::testing {

/// Expects an error of exactly this type, with `part` in its message.
template <class E>
void expect_error(const std::function<void()>& call, const std::string& part) {
  try {
    call();
    ADD_FAILURE() << "no error, expected one with: " << part;
  } catch (const E& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
        << error.what() << "\nlacks: " << part;
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another type of error: " << error.what() << "\nexpected one with: " << part;
  }
}

/// `call` with a good view of rank 2 or more, spoilt in every way: errors that name `name`.
inline void expect_checked(const std::string& name, const TensorView& good, DType wrong,
                           const std::function<void(TensorView)>& call) {
  const std::vector<std::function<void(TensorView&)>> shapes = {[](TensorView& t) { t.rank -= 1; },
                                                                [](TensorView& t) { t.rank = -1; },
                                                                [](TensorView& t) { t.rank = 6; },
                                                                [](TensorView& t) { t.shape[0] += 1; },
                                                                [](TensorView& t) { t.shape[1] = -1; },
                                                                [](TensorView& t) { t.shape[1] = std::int64_t{1} << 40; },
                                                                [](TensorView& t) { t.data = nullptr; },
                                                                [](TensorView& t) { t.device.kind = Device::kCuda; }};
  for (const auto& spoil : shapes) {
    TensorView bad = good;
    spoil(bad);
    expect_error<ShapeError>([&] { call(bad); }, name);
  }
  for (const DType dtype : {wrong, DType{77}}) {
    TensorView bad = good;
    bad.dtype = dtype;
    expect_error<DTypeError>([&] { call(bad); }, name);
  }
}

inline void expect_last_stride_checked(const std::string& name, const TensorView& good,
                                       const std::function<void(TensorView)>& call) {
  TensorView bad = good;
  bad.stride[static_cast<std::size_t>(bad.rank - 1)] = 2;
  expect_error<ShapeError>([&] { call(bad); }, name);
}

}  // namespace clusterkv::testing
