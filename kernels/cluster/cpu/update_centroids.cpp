// SPDX-License-Identifier: Apache-2.0
//
// update_centroids (stage 1, cluster). Contract and shapes: cluster/cluster.hpp.
//
// Bound: memory, one pass over the keys. Each channel is summed over tokens in order.
#include "kernels/cluster/cpu/ops.hpp"
#include "kernels/common/cpu/simd.hpp"
#include "kernels/common/dispatch.hpp"

namespace clusterkv::cluster::CLUSTERKV_ISA {
namespace {

template <DType kDType, int kHeadDim>
void update(const UpdateParams& p) {
  const KeyRun& run = p.keys;
  for (int c = 0; c < p.num_clusters; ++c) {
    const int count = p.offset[c + 1] - p.offset[c];
    if (count == 0) continue;
    simd::Floats sum[kHeadDim / simd::kLanes];
    for (simd::Floats& lanes : sum) lanes = simd::broadcast(0.0F);
    for (int i = p.offset[c]; i < p.offset[c + 1]; ++i) {
      const std::uint32_t row = paged_row(run.pages, run.first_row + p.order[i]);
      const std::byte* key = run.store.row(run.kv_head, row);
      for (int d = 0; d < kHeadDim; d += simd::kLanes) {
        simd::Floats& lanes = sum[d / simd::kLanes];
        lanes = lanes + simd::load_row<kDType>(key + d * kElementBytes<kDType>);
      }
    }
    float* centroid = p.centroids + std::size_t(c) * kHeadDim;
    const simd::Floats rows = simd::broadcast(static_cast<float>(count));
    for (int d = 0; d < kHeadDim; d += simd::kLanes) {
      simd::store(sum[d / simd::kLanes] / rows, centroid + d);
    }
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
