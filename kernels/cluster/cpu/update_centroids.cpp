// SPDX-License-Identifier: Apache-2.0
//
// update_centroids (stage 1, cluster). Contract and shapes: cluster/cluster.hpp.
//
// Bound: memory, one pass over the keys. Each channel is summed over tokens in order.
#include <algorithm>

#include "kernels/cluster/cpu/ops.hpp"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/numeric.hpp"

namespace clusterkv::cluster::CLUSTERKV_ISA {
namespace {

template <DType kDType, int kHeadDim>
void update(const UpdateParams& p) {
  const KeyRun& run = p.keys;
  for (int c = 0; c < p.num_clusters; ++c) {
    const int count = p.offset[c + 1] - p.offset[c];
    if (count == 0) continue;
    float sum[kHeadDim] = {};
    for (int i = p.offset[c]; i < p.offset[c + 1]; ++i) {
      float key[kHeadDim];
      const std::uint32_t row = paged_row(run.pages, run.first_row + p.order[i]);
      load_elements<kDType>(run.store.row(run.kv_head, row), kHeadDim, key);
      for (int d = 0; d < kHeadDim; ++d) sum[d] += key[d];
    }
    float* centroid = p.centroids + std::size_t(c) * kHeadDim;
    for (int d = 0; d < kHeadDim; ++d) centroid[d] = sum[d] / static_cast<float>(count);
  }
}

}  // namespace

void update_centroids(const UpdateParams& p) {
  dispatch_row_dtype(p.keys.store.dtype, [&](auto dtype) {
    dispatch_head_dim(p.keys.store.head_dim,
                      [&](auto head_dim) { update<dtype.value, head_dim.value>(p); });
  });
}

}  // namespace clusterkv::cluster::CLUSTERKV_ISA
