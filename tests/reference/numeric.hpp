// SPDX-License-Identifier: Apache-2.0
//
// Stored element types, from their definitions: no bit tricks, doubles and ldexp only.
#pragma once

#include <cstdint>
#include <vector>

#include "clusterkv/types.hpp"

namespace clusterkv::reference {

using Vec = std::vector<double>;

/// A binary floating-point format of 16 bits.
struct SmallFloat {
  int exponent_bits;
  int mantissa_bits;
};
inline constexpr SmallFloat kF16Format{5, 10};
inline constexpr SmallFloat kBF16Format{8, 7};

double decode(SmallFloat format, std::uint16_t bits);
/// To nearest, ties to even; NaN to a quiet NaN with any payload.
std::uint16_t encode(SmallFloat format, double value);

/// `value` as a row of `dtype` holds it.
double rounded(DType dtype, double value);

/// From `value` to the next one that a half-precision format has.
double step_of(DType dtype, double value);
/// Whether `value` lies so near the middle of two multiples of `step` that an error of so many steps may round it
/// the other way.
bool is_near_middle(double value, double step, double error);

double dot(const Vec& a, const Vec& b);

}  // namespace clusterkv::reference
