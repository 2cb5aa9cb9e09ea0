// SPDX-License-Identifier: Apache-2.0
//
// IEEE half precision, for files.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace clusterkv::tool {

inline float f16_to_float(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const float sign = (bits & 0x8000) != 0 ? -1.0F : 1.0F;
  if (exponent == 31) return mantissa == 0 ? sign * INFINITY : NAN;
  const int full = exponent == 0 ? mantissa : mantissa + 1024;
  return sign * std::ldexp(static_cast<float>(full), (exponent == 0 ? 1 : exponent) - 25);
}

/// To nearest, half to even. Finite values only.
inline std::uint16_t float_to_f16(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0F) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(magnitude, &exponent);           // magnitude = f * 2^exponent, f in [0.5, 1)
  const int scale = std::max(exponent, -13);  // subnormals share the smallest exponent
  const auto full = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 11 - scale)));
  // A mantissa that rounds up to 2048 carries into the exponent by itself.
  return static_cast<std::uint16_t>(sign + (full < 1024 ? full : ((scale + 13) << 10) + full));
}

}  // namespace clusterkv::tool
