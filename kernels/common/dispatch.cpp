// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/dispatch.hpp"

#include <fmt/format.h>

#include <string>

#include "clusterkv/error.hpp"

namespace clusterkv {

void throw_unsupported(const char* what, std::int64_t value,
                       std::span<const std::int64_t> supported) {
  std::string list;
  for (const std::int64_t candidate : supported) {
    list += fmt::format("{}{}", list.empty() ? "" : ", ", candidate);
  }
  throw ConfigError(fmt::format("{}={} unsupported, expected one of {}", what, value, list));
}

void check_limit(const char* what, std::int64_t value, std::int64_t limit) {
  if (value <= limit) return;
  throw ConfigError(fmt::format("{}={} unsupported, expected at most {}", what, value, limit));
}

void throw_misaligned(const char* what, const TensorView& rows) {
  throw ShapeError(fmt::format(
      "{}: address {} and strides {}, {}, {} (elements of {} bytes), expected multiples of 16 "
      "bytes",
      what, rows.data, rows.stride[0], rows.stride[1], rows.stride[2], size_of(rows.dtype)));
}

}  // namespace clusterkv
