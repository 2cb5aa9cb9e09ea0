// SPDX-License-Identifier: Apache-2.0
#include "tests/support/compare.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace clusterkv::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
double max_error_of(std::span<const T> got, std::span<const double> want) {
  if (got.size() != want.size()) return kInfinity;
  double largest = 0;
  double error = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
    if (std::isnan(difference)) return kInfinity;
    error = std::max(error, difference);
    largest = std::max(largest, std::abs(want[i]));
  }
  return largest > 0 ? error / largest : error;
}

}  // namespace

double max_error(std::span<const float> got, std::span<const double> want) {
  return max_error_of(got, want);
}

double max_error(std::span<const double> got, std::span<const double> want) {
  return max_error_of(got, want);
}

double relative_error(double got, double want) {
  if (got == want) return 0;
  const double error = std::abs(got - want) / std::max(1.0, std::abs(want));
  return std::isnan(error) ? kInfinity : error;
}

double storage_limit(DType dtype, double arithmetic) {
  return arithmetic + (dtype == DType::kF16 ? 0x1p-11 : dtype == DType::kBF16 ? 0x1p-8 : 0.0);
}

}  // namespace clusterkv::testing
