// SPDX-License-Identifier: Apache-2.0
#include "src/index/cluster_index.hpp"

#include "kernels/common/carve.hpp"

namespace clusterkv::index {
namespace {

struct Arrays {
  IndexStore store;
  std::uint32_t* positions;
};

Arrays carve(Carver& carver, const CacheConfig& config, const runtime::Capacity& capacity) {
  const ModelShape& m = config.model;
  const Size heads = m.num_kv_heads;
  const Size planes = heads * runtime::count_clustered_layers(config);
  const Size blocks = planes * capacity.blocks;
  const Size clusters = blocks * kBlockClusters;
  const Size records = planes * capacity.records;
  const auto element_bytes = IndexStore::element_bytes(config.cluster.index_dtype);
  Arrays a{};
  a.store.dtype = config.cluster.index_dtype;
  a.store.head_dim = m.head_dim;
  a.store.value_dim = m.value_dim;
  a.store.num_blocks = capacity.blocks;
  a.store.num_records = capacity.records;
  a.store.centroids = carver.take<std::byte>(clusters * m.head_dim * element_bytes);
  a.store.value_means = carver.take<std::byte>(clusters * m.value_dim * element_bytes);
  a.store.centroid_scale = carver.take<float>(clusters);
  a.store.value_scale = carver.take<float>(clusters);
  a.store.spread = carver.take<float>(clusters);
  a.store.offset = carver.take<std::uint32_t>(blocks * (kBlockClusters + 1));
  a.store.profile = carver.take<float>(records * m.head_dim);
  a.store.value_sum = carver.take<float>(records * m.value_dim);
  a.store.used = carver.take<std::int32_t>(records);
  a.positions = carver.take<std::uint32_t>(heads * m.num_layers * capacity.row_pages * kPageRows);
  return a;
}

}  // namespace

std::size_t ClusterIndex::bytes(const CacheConfig& config, const runtime::Capacity& capacity) {
  Carver carver(nullptr);
  carve(carver, config, capacity);
  return carver.used();
}

ClusterIndex::ClusterIndex(const CacheConfig& config, const runtime::Capacity& capacity,
                           MemoryResource& memory, Device device)
    : num_kv_heads_(config.model.num_kv_heads),
      num_dense_(runtime::count_dense_layers(config)),
      num_rows_(capacity.row_pages * kPageRows),
      memory_(memory, bytes(config, capacity), "cluster index", device) {
  Carver carver(memory_.data());
  const Arrays arrays = carve(carver, config, capacity);
  arrays_ = arrays.store;
  positions_ = arrays.positions;
}

IndexStore ClusterIndex::layer(int layer) const {
  IndexStore store = arrays_;
  const std::int64_t planes = std::int64_t{layer - num_dense_} * num_kv_heads_;
  const std::int64_t blocks = planes * store.num_blocks;
  const std::int64_t clusters = blocks * kBlockClusters;
  const std::int64_t records = planes * store.num_records;
  store.centroids += blocks * static_cast<std::int64_t>(store.centroid_block_bytes());
  store.value_means += blocks * static_cast<std::int64_t>(store.mean_block_bytes());
  store.centroid_scale += clusters;
  store.value_scale += clusters;
  store.spread += clusters;
  store.offset += blocks * (kBlockClusters + 1);
  store.profile += records * store.head_dim;
  store.value_sum += records * store.value_dim;
  store.used += records;
  return store;
}

std::uint32_t* ClusterIndex::positions(int layer) const {
  return positions_ + std::int64_t{layer} * num_kv_heads_ * num_rows_;
}

}  // namespace clusterkv::index
