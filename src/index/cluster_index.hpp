// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "clusterkv/config.hpp"
#include "clusterkv/memory.hpp"
#include "kernels/index/index.hpp"
#include "src/runtime/buffer.hpp"
#include "src/runtime/capacity.hpp"

namespace clusterkv::index {

/// The centroid side of all sequences, for all layers: what select reads. Dense layers have none.
/// Layout: docs/layouts.md.
class ClusterIndex {
 public:
  ClusterIndex(const CacheConfig& config, const runtime::Capacity& capacity, MemoryResource& memory,
               Device device = {});
  static std::size_t bytes(const CacheConfig& config, const runtime::Capacity& capacity);

  /// \pre the layer is not dense
  [[nodiscard]] IndexStore layer(int layer) const;

  /// Token position of each row of the row store, [kv_head, row].
  [[nodiscard]] std::uint32_t* positions(int layer) const;
  [[nodiscard]] std::int64_t positions_stride() const { return num_rows_; }

 private:
  IndexStore arrays_;  ///< of the first clustered layer
  std::uint32_t* positions_ = nullptr;
  int num_kv_heads_;
  int num_dense_;  ///< dense layers come first, because layer ids ascend
  std::int64_t num_rows_;
  runtime::Buffer memory_;
};

}  // namespace clusterkv::index
