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
#include "kernels/common/host_device.hpp"
#include "kernels/common/tuning.hpp"

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

/// A dim known when compiling, and one that is not. kMost: what it can be.
template <int kDim>
struct FixedDim {
  static constexpr int kMost = kDim;
  FixedDim() = default;
  CLUSTERKV_HD constexpr explicit FixedDim(int) {}
  CLUSTERKV_HD constexpr operator int() const { return kDim; }
};
struct AnyDim {
  static constexpr int kMost = kMaxHeadDim;
  int dim;
  CLUSTERKV_HD constexpr explicit AnyDim(int value) : dim(value) {}
  CLUSTERKV_HD constexpr operator int() const { return dim; }
};
/// kDim = 0: any.
template <int kDim>
using DimOf = std::conditional_t<kDim == 0, AnyDim, FixedDim<kDim>>;

/// Calls fn with value_dim, known when compiling where it is head_dim, as in nearly all models: there need
/// not be code for each pair.
template <int kHeadDim, class Fn>
[[gnu::always_inline]] inline void dispatch_value_dim(int value_dim, const Fn& fn) {
  value_dim == kHeadDim ? fn(FixedDim<kHeadDim>()) : fn(AnyDim(value_dim));
}

/// Calls fn with the dim that keys and values have, or with 0 where they differ.
template <class Fn>
[[gnu::always_inline]] inline void dispatch_dims(int head_dim, int value_dim, const Fn& fn) {
  head_dim == value_dim ? dispatch_head_dim(head_dim, fn) : fn(std::integral_constant<int, 0>{});
}

/// The dtypes rows are stored in.
template <class Fn>
[[gnu::always_inline]] inline void dispatch_row_dtype(DType dtype, const Fn& fn) {
  dispatch_value<DType::kF32, DType::kF16, DType::kBF16>("dtype", dtype, fn);
}

}  // namespace clusterkv
