// SPDX-License-Identifier: Apache-2.0
//
// How far results are from their reference. NaN is infinitely far, so that no limit lets it pass.
#pragma once

#include <span>
#include <vector>

#include "clusterkv/types.hpp"

namespace clusterkv::testing {

/// max |got - want| / max |want|; an all-zero reference counts as 1.
double max_error(std::span<const float> got, std::span<const double> want);
double max_error(std::span<const double> got, std::span<const double> want);

/// |got - want| / max(1, |want|); 0 for equal infinities.
double relative_error(double got, double want);

/// What storing a result as `dtype` may change, relative to the largest: half a unit in the last
/// place, and `arithmetic` for the sums before it.
double storage_limit(DType dtype, double arithmetic);

}  // namespace clusterkv::testing
