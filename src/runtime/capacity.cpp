// SPDX-License-Identifier: Apache-2.0
#include "src/runtime/capacity.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/common/tuning.hpp"

namespace clusterkv::runtime {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

std::size_t plane_row_bytes(const ModelShape& m) {
  return static_cast<std::size_t>(m.head_dim + m.value_dim) * size_of(m.kv_dtype);
}

/// Bytes of so many tokens in all clustered layers.
std::size_t rows_bytes(const CacheConfig& config, int tokens) {
  const ModelShape& m = config.model;
  return static_cast<std::size_t>(count_clustered_layers(config) * m.num_kv_heads) *
         static_cast<std::size_t>(tokens) * plane_row_bytes(m);
}

ModelShape with_layers(const ModelShape& model, int num_layers) {
  ModelShape result = model;
  result.num_layers = num_layers;
  return result;
}

/// Fewest tokens a segment can have. One that there is no room for will not be.
std::int64_t least_segment(const CacheConfig& config) {
  const ClusterConfig& c = config.cluster;
  const int least =
      c.segment_tokens == 0 ? c.window_tokens : std::min(c.segment_tokens, c.window_tokens);
  return std::clamp<std::int64_t>(config.max_tokens, 1, least);
}

/// Most index blocks that max_tokens tokens can take, over all ways to cut them into segments.
std::int64_t max_blocks(const CacheConfig& config) {
  const ClusterConfig& c = config.cluster;
  const std::int64_t least = least_segment(config);
  const std::int64_t clusters_least = std::min(
      least, std::max(ceil_div(least, c.tokens_per_cluster), std::int64_t{c.min_window_clusters}));
  // Blocks grow by one each kBlockClusters * tokens_per_cluster tokens; the dearest segment is the
  // shortest, or the shortest that needs one block more.
  const std::int64_t first = ceil_div(clusters_least, kBlockClusters);
  const std::int64_t longer = std::max(least, first * kBlockClusters * c.tokens_per_cluster + 1);
  const std::int64_t by_shortest = first * (config.max_tokens / least);
  const std::int64_t by_longer = (first + 1) * (config.max_tokens / longer);
  return std::max(by_shortest, by_longer) + first + 1;  // + 1: the divisions round down
}

/// What lies on the device and what in the host store, of layers that choose.
void divide_rows(const CacheConfig& config, Capacity& capacity) {
  const ModelShape& m = config.model;
  const StoreConfig& store = config.store;
  const std::size_t page_bytes = row_page_bytes(config);
  if (page_bytes == 0) return;  // no such layers
  const auto fit = [](std::size_t bytes, std::size_t one) {
    return static_cast<std::int64_t>(std::min(bytes / one, std::size_t{1} << 62));
  };
  const std::size_t slot_bytes = rows_bytes(config, kQuadRows);
  const std::int64_t wanted = std::int64_t{config.max_sequences} * config.select.budget_tokens *
                              (capacity.selection_heads / m.num_kv_heads);
  const std::int64_t asked = std::max<std::int64_t>(1, fit(store.device_bytes, slot_bytes));
  const bool is_bound = store.host_bytes > 0 && store.cold_path.empty();
  const std::int64_t most = is_bound ? fit(store.host_bytes, page_bytes) : capacity.row_pages;
  constexpr std::int64_t kPageQuads = kPageRows / kQuadRows;
  capacity.near_pages = 0;
  capacity.slots = store.device_bytes == 0 ? wanted : asked;
  if (store.residency == Residency::kHybrid) {
    // Slots first: rows on the device save no more than their own transfers.
    capacity.slots = std::min({asked, wanted, std::min(most, capacity.row_pages) * kPageQuads});
    const std::size_t slots = static_cast<std::size_t>(capacity.slots) * slot_bytes;
    const std::int64_t all = fit(store.device_bytes, page_bytes);
    const std::int64_t rest =
        fit(store.device_bytes - std::min(store.device_bytes, slots), page_bytes);
    capacity.near_pages = std::min(all >= capacity.row_pages ? all : rest, capacity.row_pages);
  }
  const std::int64_t far_pages = capacity.row_pages - capacity.near_pages;
  capacity.host_is_bound = most < far_pages;
  capacity.row_pages = capacity.near_pages + std::min(far_pages, most);
  capacity.slots = std::min(capacity.slots, std::min(far_pages, most) * kPageQuads);
}

}  // namespace

std::size_t row_page_bytes(const CacheConfig& config) {
  return rows_bytes(config, kPageRows);
}

bool has_host_store(const CacheConfig& config) {
  return config.store.residency == Residency::kHost || config.store.residency == Residency::kHybrid;
}

Capacity capacity_of(const CacheConfig& config) {
  const ModelShape& m = config.model;
  const std::int64_t sequences = config.max_sequences;
  const bool per_query_head = config.select.grouping == HeadGrouping::kPerQueryHead;
  Capacity capacity{};
  capacity.sink_pages = ceil_div(config.cluster.sink_tokens, kPageRows);
  // A fork's own rows may begin inside a page, and every sequence's may end inside one.
  capacity.row_pages = ceil_div(config.max_tokens, kPageRows) + 2 * sequences;
  // Pending tokens may begin and end inside a page. One page more, because those of a cut segment are
  // there before others are given back.
  const std::int64_t live =
      config.store.live_tokens == 0 ? config.max_tokens : config.store.live_tokens;
  capacity.live_pages = ceil_div(std::min(live, config.max_tokens), kPageRows) +
                        sequences * (capacity.sink_pages + 2) + 1;
  capacity.blocks = max_blocks(config);
  capacity.records = config.max_tokens / least_segment(config) + 1;
  capacity.selection_heads = per_query_head ? m.num_q_heads : m.num_kv_heads;
  capacity.near_pages = capacity.row_pages;
  if (has_host_store(config)) divide_rows(config, capacity);
  return capacity;
}

std::int64_t context_tokens(const CacheConfig& config, const PlanLimits& limits) {
  return limits.max_context_tokens > 0 ? limits.max_context_tokens : config.max_tokens;
}

Capacity step_capacity(const CacheConfig& config, const PlanLimits& limits) {
  CacheConfig of_step = config;
  of_step.max_tokens = context_tokens(config, limits);
  of_step.max_sequences = limits.max_rows;
  of_step.store.live_tokens = 0;
  of_step.store.host_bytes = 0;  // forks share pages, their tables do not
  return capacity_of(of_step);
}

CacheConfig resolved(const CacheConfig& config, Residency residency) {
  CacheConfig result = config;
  ModelShape& m = result.model;
  if (m.softmax_scale == 0.0F) m.softmax_scale = 1.0F / std::sqrt(static_cast<float>(m.head_dim));
  if (m.value_dim == 0) m.value_dim = m.head_dim;
  if (m.layers.empty()) {
    m.layers.resize(static_cast<std::size_t>(m.num_layers));
    std::iota(m.layers.begin(), m.layers.end(), 0);
  }
  StoreConfig& store = result.store;
  if (store.residency == Residency::kAuto) {
    store.residency = store.cold_path.empty() ? residency : Residency::kHost;
  }
  return result;
}

int list_capacity(const CacheConfig& config, const PlanLimits& limits) {
  const int budget =
      limits.max_budget_tokens > 0 ? limits.max_budget_tokens : config.select.budget_tokens;
  const double dense = std::floor(static_cast<double>(config.select.dense_threshold) * budget);
  const double rows = std::max<double>(budget, dense);
  return static_cast<int>(std::min(rows, static_cast<double>(config.max_tokens)));
}

bool is_dense_layer(const CacheConfig& config, int layer) {
  return config.model.layers[static_cast<std::size_t>(layer)] < config.select.dense_layers;
}

int count_dense_layers(const CacheConfig& config) {
  int count = 0;
  while (count < config.model.num_layers && is_dense_layer(config, count)) ++count;
  return count;
}

int count_clustered_layers(const CacheConfig& config) {
  return config.model.num_layers - count_dense_layers(config);
}

ModelShape dense_layers(const CacheConfig& config) {
  return with_layers(config.model, count_dense_layers(config));
}

ModelShape clustered_layers(const CacheConfig& config) {
  return with_layers(config.model, count_clustered_layers(config));
}

}  // namespace clusterkv::runtime
