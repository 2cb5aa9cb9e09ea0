// SPDX-License-Identifier: Apache-2.0
#include "src/needs.hpp"

#include <new>

#include "kernels/common/carve.hpp"
#include "kernels/common/tuning.hpp"
#include "src/index/cluster_index.hpp"
#include "src/plan.hpp"
#include "src/recall/recall_stage.hpp"
#include "src/recall/row_stores.hpp"
#include "src/runtime/check.hpp"
#include "src/runtime/check_config.hpp"
#include "src/seal.hpp"

namespace clusterkv {

using runtime::Capacity;
using runtime::fail;

namespace {

/// Bytes beside the row store.
Size fixed_bytes(const CacheConfig& c, const Capacity& capacity) {
  return Size(index::ClusterIndex::bytes(c, capacity)) +
         recall::RowArena::bytes(c.model, capacity.live_pages) +
         recall::SlotPools::bytes(c, capacity) + Sealer::initial_bytes(c);
}

std::size_t stored_bytes(const CacheConfig& c, const Capacity& capacity, Rows rows) {
  return recall::RowArena::bytes(c.model, stored_pages(capacity, rows));
}

/// Why there can be no stores for a config whose fields are in range; null if there can.
const char* find_size_fault(const CacheConfig& c, Rows rows) {
  const Capacity capacity = runtime::capacity_of(c);
  constexpr std::int64_t kMostPages = (std::int64_t{1} << 32) / kPageRows;
  if (capacity.live_pages > kMostPages) {
    return "max_sequences: expected sinks and pending tokens in at most 2^32 rows";
  }
  if (!(fixed_bytes(c, capacity) + stored_bytes(c, capacity, rows)).fits()) {
    return "max_tokens: expected stores of less than 2^63 bytes";
  }
  return nullptr;
}

/// A selector has no store for rows.
CacheConfig resolved_for(const CacheConfig& config, Rows rows) {
  CacheConfig result = runtime::resolved(config);
  if (rows == Rows::kElsewhere) result.store.residency = Residency::kDevice;
  return result;
}

}  // namespace

std::int64_t stored_pages(const Capacity& capacity, Rows rows) {
  return rows == Rows::kKept ? capacity.row_pages : 0;
}

Support find_support(const CacheConfig& config, Backend backend, Rows rows) noexcept {
  const Support support = runtime::find_support(config, backend);
  if (!support.ok) return support;
  try {
    const char* fault = find_size_fault(resolved_for(config, rows), rows);
    return fault == nullptr ? support : Support{false, fault};
  } catch (const std::bad_alloc&) {
    return {false, "model.layers: no memory for a copy of the list"};
  }
}

CacheConfig checked_config(const CacheConfig& config, Backend backend, Rows rows) {
  runtime::check_config(config, backend);
  CacheConfig result = resolved_for(config, rows);
  if (const char* fault = find_size_fault(result, rows)) {
    fail<ConfigError>("{}, got {} tokens of {} sequences", fault, result.max_tokens,
                      result.max_sequences);
  }
  const StoreConfig& store = result.store;
  if (store.residency == Residency::kHost && store.host_bytes > 0) {
    const std::size_t needed = stored_bytes(result, runtime::capacity_of(result), rows);
    if (needed > store.host_bytes) {
      fail<ConfigError>("store.host_bytes: {}, expected 0 or at least the {} of max_tokens {}",
                        store.host_bytes, needed, result.max_tokens);
    }
  }
  return result;
}

MemoryNeeds find_needs(const CacheConfig& config, Backend backend, const PlanLimits& limits,
                       Rows rows) {
  const CacheConfig c = checked_config(config, backend, rows);
  runtime::check_limits(limits);
  const Capacity capacity = runtime::capacity_of(c);
  const std::size_t stored = stored_bytes(c, capacity, rows);
  const bool on_host = c.store.residency == Residency::kHost;
  MemoryNeeds needs;
  needs.device_bytes = fixed_bytes(c, capacity).get() + (on_host ? 0 : stored);
  needs.host_bytes = on_host ? stored : 0;
  needs.workspace_bytes = workspace_bytes(c, limits);
  return needs;
}

std::size_t workspace_bytes(const CacheConfig& checked, const PlanLimits& limits) {
  const std::size_t bytes = scratch_bytes(checked, limits);
  if (!Size(bytes).fits()) {
    fail<ConfigError>("limits: {} rows with a budget of {}, expected a workspace below 2^63 bytes",
                      limits.max_rows, limits.max_budget_tokens);
  }
  return bytes;
}

}  // namespace clusterkv
