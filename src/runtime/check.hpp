// SPDX-License-Identifier: Apache-2.0
//
// Checks of arguments. Each throws before anything has changed, and says which argument, what it
// was and what was expected.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <initializer_list>
#include <utility>

#include "clusterkv/error.hpp"
#include "clusterkv/types.hpp"

namespace clusterkv::runtime {

template <class E, class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw E(fmt::format(format, std::forward<Args>(args)...));
}

enum class LastStride : std::uint8_t { kAny, kOne };

/// What a tensor argument must look like. An extent of -1 may be anything >= 0.
struct TensorRule {
  const char* name;
  std::initializer_list<std::int64_t> shape;
  std::initializer_list<DType> dtypes;
  LastStride last_stride = LastStride::kAny;
};

inline constexpr std::initializer_list<DType> kFloatTypes = {DType::kF32, DType::kF16,
                                                             DType::kBF16};

const char* dtype_name(DType dtype) noexcept;

/// \throws ShapeError, DTypeError
void check_tensor(const TensorView& tensor, const TensorRule& rule,
                  Backend backend = Backend::kCpu);

}  // namespace clusterkv::runtime
