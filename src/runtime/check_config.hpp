// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "clusterkv/config.hpp"
#include "clusterkv/step.hpp"

namespace clusterkv::runtime {

/// Whether the configuration can run on the backend, and the first reason why not.
Support find_support(const CacheConfig& config, Backend backend) noexcept;

/// \throws ConfigError         naming the first field that is out of range, and its value
/// \throws BackendUnavailable  if the backend was not built
void check_config(const CacheConfig& config, Backend backend);

/// \throws ShapeError  naming the first limit that is out of range, and its value
void check_limits(const PlanLimits& limits);

}  // namespace clusterkv::runtime
