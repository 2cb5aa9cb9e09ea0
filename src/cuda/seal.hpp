// SPDX-License-Identifier: Apache-2.0
//
// Stages 1 and 2 on a device: clusters, indexes and stores the segments that a step seals.
#pragma once

#include <cstdint>
#include <span>

#include "clusterkv/config.hpp"
#include "clusterkv/memory.hpp"
#include "kernels/cluster/cuda/cluster_ops.hpp"
#include "kernels/common/carve.hpp"
#include "kernels/index/cuda/index_ops.hpp"
#include "src/cuda/plan_memory.hpp"
#include "src/runtime/buffer.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// Stores of the layers that seal together, plane 0 first: planes are layers by KV heads.
struct SealTarget {
  RowStore live;
  RowStore stored;  ///< null base: rows are not kept
  IndexStore index;
  std::uint32_t* positions;
  std::int64_t positions_stride;
  bool dense;  ///< rows stay in token order, without an index
  int first_plane;
  int num_planes;
};

class Sealer {
 public:
  Sealer(const CacheConfig& config, MemoryResource& memory);
  static Size initial_bytes(const CacheConfig& config);

  /// Whether seal() has room for segments of this size.
  [[nodiscard]] bool has_room(int num_tokens, int num_clusters) const;
  /// Makes room. Nothing that seal() enqueued may be under way.
  /// \throws OutOfMemory
  void reserve(int num_tokens, int num_clusters);

  /// Enqueues segments `seals`, whose sizes are `sizes`, in their order. `clusters` counts those used.
  void seal(const SealTarget& target, const SealView* seals, std::span<const SealSize> sizes,
            std::int64_t* clusters, void* stream);

 private:
  static Size scratch_bytes(const CacheConfig& config);
  void seal_group(const SealTarget& target, const SealView* seals, int num_seals,
                  const SealSize& most, std::int64_t* clusters, void* stream);

  ModelShape model_;
  ClusterConfig config_;
  MemoryResource* memory_;
  runtime::Buffer scratch_;       ///< areas of the jobs of one launch
  runtime::Buffer cluster_jobs_;  ///< LargeClusterJob, or ClusterJob [kMaxJobs]
  runtime::Buffer index_jobs_;    ///< IndexJob [kMaxJobs]
  runtime::Buffer previous_;      ///< u32 [kMaxJobs]
  runtime::Buffer model_layers_;  ///< int, of the clustered layers
};

}  // namespace clusterkv::CLUSTERKV_DEVICE
