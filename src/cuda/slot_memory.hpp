// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "clusterkv/config.hpp"
#include "clusterkv/memory.hpp"
#include "kernels/common/carve.hpp"
#include "kernels/recall/cuda/recall_ops.hpp"
#include "src/runtime/buffer.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// The slot pools of all clustered layers: planes are those by KV heads. Null arrays without slots.
class SlotMemory {
 public:
  SlotMemory(const CacheConfig& config, MemoryResource& memory);
  static Size bytes(const CacheConfig& config);
  [[nodiscard]] bool exist() const { return pools_.num_slots > 0; }
  [[nodiscard]] SlotPools layer(int layer) const;  ///< planes of a clustered layer
  [[nodiscard]] SlotView view(int layer) const;    ///< what attention reads
  void clear(void* stream);                        ///< all slots are empty

  /// Quads of the store hold other rows from now on, in all layers.
  void drop(const QuadRange* ranges, int num_ranges, void* stream);

 private:
  SlotPools pools_{};
  int num_dense_;  ///< layers, the first ones
  int num_kv_heads_;
  int num_planes_;
  runtime::Buffer memory_;
};

}  // namespace clusterkv::CLUSTERKV_DEVICE
