// SPDX-License-Identifier: Apache-2.0
//
// cluster_segment (stage 1, cluster). Contract and shapes: cluster/cluster.hpp.
#include "kernels/cluster/cluster.hpp"
#include "kernels/cluster/rules.hpp"
#include "kernels/common/carve.hpp"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/numeric.hpp"

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
          .labels = carver.take<std::int32_t>(tokens),
          .order = carver.take<std::int32_t>(tokens),
          .offset = carver.take<std::int32_t>(clusters + 1)};
}

void set_start(const SegmentParams& p, const SegmentScratch& scratch) {
  const KeyRun& run = p.keys;
  if (p.random_start) random_starts(p.start_seed, run.num_tokens, p.num_clusters, scratch.order);
  dispatch_row_dtype(run.store.dtype, [&](auto dtype) {
    for (int c = 0; c < p.num_clusters; ++c) {
      const int token =
          p.random_start ? scratch.order[c] : even_start(c, run.num_tokens, p.num_clusters);
      const std::uint32_t row = paged_row(run.pages, run.first_row + token);
      load_elements<dtype.value>(run.store.row(run.kv_head, row), run.store.head_dim,
                                 scratch.centroids + std::int64_t{c} * run.store.head_dim);
    }
  });
}

}  // namespace

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

void cluster_segment_cpu(const SegmentParams& p, const SegmentScratch& s) {
  set_start(p, s);
  for (int i = 0; i < p.iterations; ++i) {
    pack_centroids_cpu({.centroids = s.centroids,
                        .num_clusters = p.num_clusters,
                        .head_dim = p.keys.store.head_dim,
                        .metric = p.metric,
                        .panels = s.panels,
                        .bias = s.bias});
    assign_cpu({p.keys, p.num_clusters, s.panels, s.bias, s.labels});
    order_tokens_cpu({s.labels, p.keys.num_tokens, p.num_clusters, s.order, s.offset});
    if (i + 1 < p.iterations) {  // nobody reads the centroids after the last assignment
      update_centroids_cpu({p.keys, p.num_clusters, s.order, s.offset, s.centroids});
    }
  }
}

}  // namespace clusterkv::cluster
