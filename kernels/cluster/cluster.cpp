// SPDX-License-Identifier: Apache-2.0
#include "kernels/cluster/cluster.hpp"

#include "kernels/common/carve.hpp"

namespace clusterkv::cluster {
namespace {

SegmentScratch carve(Carver& carver, int num_tokens, int num_clusters, int head_dim) {
  const auto tokens = static_cast<std::size_t>(num_tokens);
  const auto clusters = static_cast<std::size_t>(num_clusters);
  const std::size_t padded = (clusters + kPanel - 1) / kPanel * kPanel;
  const auto dim = static_cast<std::size_t>(head_dim);
  return {.centroids = carver.take<float>(clusters * dim),
          .panels = carver.take<float>(padded * dim),
          .bias = carver.take<float>(padded),
          .tiles = carver.take<std::byte>(assign_tiles_bytes(num_clusters, head_dim)),
          .labels = carver.take<std::int32_t>(tokens),
          .order = carver.take<std::int32_t>(tokens),
          .offset = carver.take<std::int32_t>(clusters + 1)};
}

}  // namespace

std::size_t assign_tiles_bytes(int num_clusters, int head_dim) {
  const auto up = [](int count) {  // whole pairs of tiles
    constexpr int kStep = 32;
    return static_cast<std::size_t>((count + kStep - 1) / kStep * kStep);
  };
  return up(num_clusters) * up(head_dim) * 2 * sizeof(std::uint16_t);
}

std::size_t segment_scratch_bytes(int num_tokens, int num_clusters, int head_dim) {
  Carver carver(nullptr);
  carve(carver, num_tokens, num_clusters, head_dim);
  return carver.used();
}

SegmentScratch carve_segment_scratch(std::byte* memory, int num_tokens, int num_clusters,
                                     int head_dim) {
  Carver carver(memory);
  return carve(carver, num_tokens, num_clusters, head_dim);
}

}  // namespace clusterkv::cluster
