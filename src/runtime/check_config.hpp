// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "clusterkv/config.hpp"
#include "clusterkv/step.hpp"

namespace clusterkv::runtime {

/// The first reason why no backend can run it, a static string; null if there is none.
const char* find_fault(const CacheConfig& config) noexcept;

/// \throws ConfigError  naming the first field that is out of range, and its value
void check_config(const CacheConfig& config);

/// \throws ShapeError  naming the first limit that is out of range, and its value
void check_limits(const PlanLimits& limits);

}  // namespace clusterkv::runtime
