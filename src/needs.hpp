// SPDX-License-Identifier: Apache-2.0
//
// What a cache or selector will take, known before it is made, and which configurations can have none.
#pragma once

#include <cstddef>
#include <cstdint>

#include "clusterkv/config.hpp"
#include "clusterkv/step.hpp"
#include "src/page_pools.hpp"

namespace clusterkv {

/// Whether clustered rows are kept, or stay in the engine's pool.
enum class Rows : std::uint8_t { kKept, kElsewhere };

/// Whether it can run on the backend, and the first reason why not.
Support find_support(const CacheConfig& config, Backend backend, Rows rows) noexcept;

/// The config with all defaults filled in.
/// \throws ConfigError, BackendUnavailable
CacheConfig checked_config(const CacheConfig& config, Backend backend, Rows rows);

/// \throws ConfigError, BackendUnavailable, ShapeError
MemoryNeeds find_needs(const CacheConfig& config, Backend backend, const PlanLimits& limits,
                       Rows rows);

/// Bytes of the stores that sequences hold now.
std::int64_t find_held_bytes(const CacheConfig& resolved, const PagePools& pools, Rows rows);

/// Those of them that store.host_bytes bounds.
std::int64_t find_host_bytes(const CacheConfig& resolved, const PagePools& pools);

/// Pages of the store for clustered rows.
std::int64_t stored_pages(const runtime::Capacity& capacity, Rows rows);

}  // namespace clusterkv
