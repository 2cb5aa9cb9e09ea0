// SPDX-License-Identifier: Apache-2.0
#include "tests/reference/numeric.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace clusterkv::reference {
namespace {

int bias_of(SmallFloat f) {
  return (1 << (f.exponent_bits - 1)) - 1;
}

}  // namespace

double decode(SmallFloat f, std::uint16_t bits) {
  const int mantissa = bits & ((1 << f.mantissa_bits) - 1);
  const int exponent = (bits >> f.mantissa_bits) & ((1 << f.exponent_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << f.exponent_bits) - 1) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  const int hidden = exponent == 0 ? 0 : 1 << f.mantissa_bits;
  const int scale = (exponent == 0 ? 1 : exponent) - bias_of(f) - f.mantissa_bits;
  return sign * std::ldexp(hidden + mantissa, scale);
}

std::uint16_t encode(SmallFloat f, double value) {
  const int sign = std::signbit(value) ? 0x8000 : 0;
  const int infinity = ((1 << f.exponent_bits) - 1) << f.mantissa_bits;
  if (std::isnan(value)) {
    return static_cast<std::uint16_t>(sign | infinity | 1 << (f.mantissa_bits - 1));
  }
  const double magnitude = std::abs(value);
  if (std::isinf(value)) return static_cast<std::uint16_t>(sign | infinity);
  if (magnitude == 0) return static_cast<std::uint16_t>(sign);
  const int lowest = 1 - bias_of(f);
  const int exponent = std::max(std::ilogb(magnitude), lowest);
  // In units of the last place; nearbyint rounds half to even.
  const double units = std::nearbyint(std::ldexp(magnitude, f.mantissa_bits - exponent));
  // A carry out of the mantissa, also from subnormal to normal, is the next exponent.
  const double code = units + static_cast<double>((exponent - lowest) << f.mantissa_bits);
  return static_cast<std::uint16_t>(sign | (code > infinity ? infinity : static_cast<int>(code)));
}

double rounded(DType dtype, double value) {
  if (dtype == DType::kF16) return decode(kF16Format, encode(kF16Format, value));
  if (dtype == DType::kBF16) return decode(kBF16Format, encode(kBF16Format, value));
  return static_cast<float>(value);
}

double step_of(DType dtype, double value) {
  const SmallFloat format = dtype == DType::kF16 ? kF16Format : kBF16Format;
  const int exponent = std::ilogb(std::max(std::abs(value), 1e-30));
  return std::ldexp(1.0, std::max(exponent, 1 - bias_of(format)) - format.mantissa_bits);
}

bool is_near_middle(double value, double step, double error) {
  const double ratio = value / step;
  return std::abs(ratio - std::floor(ratio) - 0.5) < error;
}

double dot(const Vec& a, const Vec& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

}  // namespace clusterkv::reference
