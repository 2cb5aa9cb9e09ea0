// SPDX-License-Identifier: Apache-2.0
//
// cluster_segment (stage 1, cluster). Contract and shapes: cluster/cluster.hpp.
#include "kernels/cluster/cpu/ops.hpp"
#include "kernels/cluster/rules.hpp"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/numeric.hpp"

namespace clusterkv::cluster::CLUSTERKV_ISA {
namespace {

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

void cluster_segment(const SegmentParams& p, const SegmentScratch& s) {
  set_start(p, s);
  for (int i = 0; i < p.iterations; ++i) {
    pack_centroids({.centroids = s.centroids,
                    .num_clusters = p.num_clusters,
                    .head_dim = p.keys.store.head_dim,
                    .metric = p.metric,
                    .panels = s.panels,
                    .bias = s.bias});
    assign({p.keys, p.num_clusters, s.panels, s.bias, s.labels, s.tiles});
    order_tokens({s.labels, p.keys.num_tokens, p.num_clusters, s.order, s.offset});
    if (i + 1 < p.iterations) {  // nobody reads the centroids after the last assignment
      update_centroids({p.keys, p.num_clusters, s.order, s.offset, s.centroids});
    }
  }
}

}  // namespace clusterkv::cluster::CLUSTERKV_ISA
