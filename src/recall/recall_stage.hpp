// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "clusterkv/config.hpp"
#include "clusterkv/executor.hpp"
#include "clusterkv/memory.hpp"
#include "src/recall/row_stores.hpp"
#include "src/recall/slot_pool.hpp"
#include "src/recall/stored_rows.hpp"
#include "src/runtime/buffer.hpp"
#include "src/runtime/capacity.hpp"

namespace clusterkv::recall {

/// Arguments of one recall: all rows of a step, for one layer.
struct RecallStep {
  const SequenceView* rows;          ///< [num_rows]
  const std::uint32_t* retain_from;  ///< [num_rows]
  SelectionLists lists;              ///< with a limit, clusters are taken out
  int max_transfers;                 ///< quads that a plan row and KV head may bring in
  int num_rows;
  std::uint32_t plan_number;
  const StoredRows& stored;
  QuadCopy* copies;   ///< scratch [kv_head, lists of a KV head * num_rows * capacity]
  RecallPlan* plans;  ///< written [kv_head]
};

/// The slots of all clustered layers: recalled quads, near to attention. Without slots, rows are read in
/// place. Calls name clustered layers alone.
class SlotPools {
 public:
  SlotPools(const CacheConfig& config, const runtime::Capacity& capacity, MemoryResource& memory);
  static std::size_t bytes(const CacheConfig& config, const runtime::Capacity& capacity);

  [[nodiscard]] bool exist() const { return !pools_.empty(); }

  /// What attention reads; null directory without slots.
  [[nodiscard]] SlotView layer(int layer) const;

  /// Brings the selected quads of one layer into slots.
  /// \throws FileError  if some cannot be read; the slots then have fewer quads
  void recall(int layer, const RecallStep& step, Executor& executor);

  /// Quads of the store hold other rows from now on, in all layers.
  void drop(std::uint32_t first_quad, std::uint32_t count) noexcept;

 private:
  [[nodiscard]] std::size_t plane(int layer, int kv_head) const {
    return static_cast<std::size_t>(layer - num_dense_) * static_cast<std::size_t>(num_kv_heads_) +
           static_cast<std::size_t>(kv_head);
  }

  int num_dense_;  ///< layers, the first ones
  int num_kv_heads_;
  std::int64_t num_quads_;
  std::size_t plane_bytes_;      ///< slots of one layer and KV head
  runtime::Buffer directory_;    ///< u32 [clustered layer, kv_head, quad]
  runtime::Buffer slots_;        ///< [clustered layer, kv_head, slot, kQuadRows rows]
  std::vector<SlotPool> pools_;  ///< [clustered layer, kv_head]
};

}  // namespace clusterkv::recall
