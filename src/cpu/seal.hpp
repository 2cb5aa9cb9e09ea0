// SPDX-License-Identifier: Apache-2.0
//
// Stages 1 and 2 for the segments that a step seals in one layer: cluster, then index.
#pragma once

#include <cstdint>
#include <span>

#include "clusterkv/config.hpp"
#include "clusterkv/executor.hpp"
#include "clusterkv/memory.hpp"
#include "kernels/common/views.hpp"
#include "src/runtime/buffer.hpp"
#include "src/sequence.hpp"

namespace clusterkv::cpu {

/// What sealing needs of one layer.
struct SealLayer {
  RowStore live;
  RowStore stored;  ///< null base: rows are not kept
  IndexStore index;
  std::uint32_t* positions;
  std::int64_t positions_stride;
  int model_layer;
  bool dense;  ///< rows stay in token order, without an index
};

class Sealer {
 public:
  Sealer(const CacheConfig& config, MemoryResource& memory);
  static std::size_t initial_bytes(const CacheConfig& config);

  /// Makes sure that seal() has room for segments of these sizes.
  /// \throws OutOfMemory
  void reserve(int num_tokens, int num_clusters);

  /// Clusters and stores the sealing segments of one sequence; KV heads and segments in parallel.
  void seal(const SealLayer& layer, const Sequence& sequence, Executor& executor);

 private:
  void seal_segment(const SealLayer& layer, const Sequence& sequence, int job,
                    std::byte* scratch) const;

  ModelShape model_;
  ClusterConfig config_;
  MemoryResource* memory_;
  std::size_t area_bytes_;   ///< scratch of one task
  runtime::Buffer scratch_;  ///< kSealTasks areas
};

}  // namespace clusterkv::cpu
