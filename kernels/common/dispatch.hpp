// SPDX-License-Identifier: Apache-2.0
//
// From run-time values to template arguments. The list at the call site is the support matrix. Always
// inlined, for the reason given in host_device.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include "clusterkv/types.hpp"

namespace clusterkv {

/// Throws ConfigError "<what>=<value> unsupported, expected one of <supported>". Lives in a .cpp,
/// so that fmt never enters a CUDA translation unit.
[[noreturn]] void throw_unsupported(const char* what, std::int64_t value,
                                    std::span<const std::int64_t> supported);

/// Throws ConfigError "<what>=<value> unsupported, expected at most <limit>" if it is more.
void check_limit(const char* what, std::int64_t value, std::int64_t limit);

/// Throws ShapeError: address and strides of `rows`, and that multiples of 16 bytes were expected.
[[noreturn]] void throw_misaligned(const char* what, const TensorView& rows);

/// Calls fn(std::integral_constant<V, k>) for the k of kValues that equals `value`, else throws.
template <auto... kValues, class V, class Fn>
[[gnu::always_inline]] inline void dispatch_value(const char* what, V value, const Fn& fn) {
  const bool found =
      ((value == kValues ? (fn(std::integral_constant<V, V{kValues}>{}), true) : false) || ...);
  if (found) return;
  constexpr std::array kSupported{static_cast<std::int64_t>(kValues)...};
  throw_unsupported(what, static_cast<std::int64_t>(value), kSupported);
}

/// The head dims every kernel is compiled for.
template <class Fn>
[[gnu::always_inline]] inline void dispatch_head_dim(int head_dim, const Fn& fn) {
  dispatch_value<64, 80, 96, 128, 256>("head_dim", head_dim, fn);
}

/// The dtypes rows are stored in.
template <class Fn>
[[gnu::always_inline]] inline void dispatch_row_dtype(DType dtype, const Fn& fn) {
  dispatch_value<DType::kF32, DType::kF16, DType::kBF16>("dtype", dtype, fn);
}

}  // namespace clusterkv
