// SPDX-License-Identifier: Apache-2.0
#include "src/needs.hpp"

#include <algorithm>
#include <new>

#include "kernels/common/carve.hpp"
#include "kernels/common/cpu/isa.hpp"
#include "kernels/common/tuning.hpp"
#include "src/index/cluster_index.hpp"
#include "src/recall/stored_rows.hpp"
#include "src/runtime/check.hpp"
#include "src/runtime/check_config.hpp"
#include "src/stages.hpp"

namespace clusterkv {

using runtime::Capacity;
using runtime::fail;

namespace {

/// Why there can be no stores for a config whose fields are in range; null if there can.
const char* find_size_fault(const CacheConfig& c, const BackendInfo& backend, Rows rows) {
  const Capacity capacity = runtime::capacity_of(c);
  constexpr std::int64_t kMostPages = (std::int64_t{1} << 32) / kPageRows;
  if (std::max(capacity.live_pages, capacity.row_pages) > kMostPages) {
    return "max_sequences: expected sinks and pending tokens in at most 2^32 rows";
  }
  const MemoryNeeds needs = backend.find_needs(c, {}, rows);
  const Size memory = Size(needs.device_bytes) + needs.pinned_bytes + needs.host_bytes;
  if (!(memory + needs.file_bytes).fits()) {
    return "max_tokens: expected stores of less than 2^63 bytes";
  }
  return nullptr;
}

/// A selector has no store for rows.
CacheConfig resolved_for(const CacheConfig& config, const BackendInfo& backend, Rows rows) {
  CacheConfig result = runtime::resolved(config, backend.residency);
  if (rows == Rows::kElsewhere) {
    result.store.residency = Residency::kDevice;
    result.store.cold_path.clear();
    result.store.misses = Misses::kCopyMisses;
  }
  return result;
}

/// Of a resolved config, but for its size.
const char* find_resolved_fault(const CacheConfig& c, const BackendInfo& backend, Rows rows) {
  if (c.store.misses == Misses::kEstimateMisses && !runtime::has_host_store(c)) {
    return "store.misses: kEstimateMisses, expected with Residency::kHost or kHybrid";
  }
  return backend.find_fault(c, rows);
}

/// The first reason why the backend cannot run a config, a static string; null if it can.
const char* find_fault(const CacheConfig& config, const BackendInfo& backend, Rows rows) {
  if (const char* fault = runtime::find_fault(config)) return fault;
  const CacheConfig resolved = resolved_for(config, backend, rows);
  if (const char* fault = find_resolved_fault(resolved, backend, rows)) return fault;
  return find_size_fault(resolved, backend, rows);
}

}  // namespace

const BackendInfo& backend_info(Backend backend) {
  return backend == Backend::kCpu ? cpu_backend() : cuda_backend();
}

inline namespace v0 {
MemoryResource& default_memory_resource(Backend backend) {
  const BackendInfo& info = backend_info(backend);
  if (info.missing != nullptr) throw BackendUnavailable(info.missing);
  return info.memory();
}
}  // namespace v0

std::int64_t find_held_bytes(const CacheConfig& resolved, const PagePools& pools, Rows rows) {
  Capacity held{};
  held.row_pages = pools.rows.num_held();
  held.blocks = pools.blocks.num_held();
  held.records = pools.records.num_held();
  const Size bytes = Size(index::ClusterIndex::bytes(resolved, held)) +
                     recall::RowArena::bytes(resolved.model, pools.live.num_held()) +
                     recall::RowArena::bytes(resolved.model, stored_pages(held, rows));
  return static_cast<std::int64_t>(bytes.get());
}

std::int64_t find_host_bytes(const CacheConfig& resolved, const PagePools& pools) {
  if (!resolved.store.cold_path.empty()) return 0;
  const std::int64_t pages = pools.rows.num_held_from(runtime::capacity_of(resolved).near_pages);
  return pages * static_cast<std::int64_t>(runtime::row_page_bytes(resolved));
}

std::int64_t stored_pages(const Capacity& capacity, Rows rows) {
  return rows == Rows::kKept ? capacity.row_pages : 0;
}

Support find_support(const CacheConfig& config, Backend backend, Rows rows) noexcept {
  const BackendInfo& info = backend_info(backend);
  if (info.missing != nullptr) return {false, info.missing};
  try {
    const char* fault = find_fault(config, info, rows);
    return fault == nullptr ? Support{} : Support{false, fault};
  } catch (const std::bad_alloc&) {
    return {false, "model.layers: no memory for a copy of the list"};
  }
}

CacheConfig checked_config(const CacheConfig& config, Backend backend, Rows rows) {
  const BackendInfo& info = backend_info(backend);
  if (info.missing != nullptr) throw BackendUnavailable(info.missing);
  if (backend == Backend::kCpu) cpu_isa();  // throws here, not in an executor's task
  runtime::check_config(config);
  CacheConfig result = resolved_for(config, info, rows);
  if (const char* fault = find_resolved_fault(result, info, rows)) throw ConfigError(fault);
  if (const char* fault = find_size_fault(result, info, rows)) {
    fail<ConfigError>("{}, got {} tokens of {} sequences", fault, result.max_tokens,
                      result.max_sequences);
  }
  const StoreConfig& store = result.store;
  if (runtime::capacity_of(result).host_is_bound) {
    const std::size_t page = runtime::row_page_bytes(result);
    if (page > store.host_bytes) {
      fail<ConfigError>("store.host_bytes: {}, expected 0 or at least the {} of {} tokens",
                        store.host_bytes, page, kPageRows);
    }
  }
  return result;
}

MemoryNeeds find_needs(const CacheConfig& config, Backend backend, const PlanLimits& limits,
                       Rows rows) {
  const CacheConfig c = checked_config(config, backend, rows);
  runtime::check_limits(limits);
  const MemoryNeeds needs = backend_info(backend).find_needs(c, limits, rows);
  if (!(Size(needs.workspace_bytes) + needs.workspace_pinned_bytes).fits()) {
    fail<ConfigError>("limits: {} rows with a budget of {}, expected a workspace below 2^63 bytes",
                      limits.max_rows, limits.max_budget_tokens);
  }
  return needs;
}

}  // namespace clusterkv
