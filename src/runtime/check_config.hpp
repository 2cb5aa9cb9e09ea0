// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "clusterkv/config.hpp"
#include "clusterkv/step.hpp"

namespace clusterkv::runtime {

/// The first reason why no backend can run it, a static string; null if there is none.
const char* find_fault(const CacheConfig& config) noexcept;

/// \throws ConfigError  naming the first field that is out of range, and its value
void check_config(const CacheConfig& config);

/// Whether ops take keys, or values, of so many elements.
bool is_head_dim(std::int64_t dim) noexcept;

/// Whether it is a soft cap: 0, or 1e-3 .. 1e6. Beyond, fp32 logits would be constant or not capped at all.
bool is_softcap(float softcap) noexcept;

/// \throws ShapeError  naming the first limit that is out of range, and its value
void check_limits(const PlanLimits& limits);

}  // namespace clusterkv::runtime
