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

}  // namespace clusterkv
