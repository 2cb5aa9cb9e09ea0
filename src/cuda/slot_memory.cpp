// SPDX-License-Identifier: Apache-2.0
#include "src/cuda/slot_memory.hpp"

#include "kernels/common/cuda/runtime.hpp"
#include "src/recall/row_stores.hpp"
#include "src/runtime/capacity.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

SlotPools carve_slots(Carver& carver, const CacheConfig& config) {
  const ModelShape& m = config.model;
  const runtime::Capacity capacity = runtime::capacity_of(config);
  const Size planes = Size(runtime::count_clustered_layers(config)) * m.num_kv_heads;
  const Size slots = planes * capacity.slots;
  const Size plane_bytes = Size(capacity.slots) * kQuadRows * recall::row_bytes(m);
  SlotPools pools{};
  if (capacity.slots == 0) return pools;
  pools.num_quads = capacity.row_pages * kPageRows / kQuadRows;
  pools.num_slots = static_cast<int>(capacity.slots);
  pools.directory = carver.take<std::uint32_t>(planes * pools.num_quads);
  pools.owner = carver.take<std::uint32_t>(slots);
  pools.stamp = carver.take<std::uint32_t>(slots);
  pools.referenced = carver.take<std::uint32_t>(slots);
  pools.hand = carver.take<std::int32_t>(planes);
  pools.full_in = carver.take<std::uint32_t>(planes);
  pools.slots = carver.take<std::byte>(planes * plane_bytes);
  pools.head_stride = plane_bytes.get();
  return pools;
}

}  // namespace

Size SlotMemory::bytes(const CacheConfig& config) {
  Carver carver(nullptr);
  carve_slots(carver, config);
  return carver.used();
}

SlotMemory::SlotMemory(const CacheConfig& config, MemoryResource& memory)
    : num_dense_(runtime::count_dense_layers(config)),
      num_kv_heads_(config.model.num_kv_heads),
      num_planes_(runtime::count_clustered_layers(config) * num_kv_heads_),
      memory_(memory, bytes(config).get(), "slot pool", {Device::kCuda}) {
  Carver carver(memory_.data());
  pools_ = carve_slots(carver, config);
}

SlotPools SlotMemory::layer(int layer) const {
  const std::int64_t planes = std::int64_t{layer - num_dense_} * num_kv_heads_;
  const std::int64_t slots = planes * pools_.num_slots;
  SlotPools pools = pools_;
  if (!exist()) return pools;
  pools.directory += planes * pools.num_quads;
  pools.owner += slots;
  pools.stamp += slots;
  pools.referenced += slots;
  pools.hand += planes;
  pools.full_in += planes;
  pools.slots += static_cast<std::size_t>(planes) * pools.head_stride;
  return pools;
}

SlotView SlotMemory::view(int layer) const {
  if (!exist()) return {};
  const SlotPools pools = SlotMemory::layer(layer);
  return {pools.directory, pools.num_quads, pools.slots, pools.head_stride};
}

void SlotMemory::clear(void* stream) {
  if (!exist()) return;
  // Up to the slots themselves all is numbers: all ones are no slot and no quad.
  const auto bytes = static_cast<std::size_t>(pools_.slots - memory_.data());
  fill_async(memory_.data(), 0, bytes, stream);
  fill_async(pools_.directory, 0xff,
             static_cast<std::size_t>(reinterpret_cast<std::byte*>(pools_.stamp) -
                                      reinterpret_cast<std::byte*>(pools_.directory)),
             stream);
}

void SlotMemory::drop(const QuadRange* ranges, int num_ranges, void* stream) {
  if (exist()) drop_quads(pools_, num_planes_, ranges, num_ranges, stream);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
