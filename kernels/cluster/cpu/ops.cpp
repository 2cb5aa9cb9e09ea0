// SPDX-License-Identifier: Apache-2.0
#include "kernels/cluster/cpu/ops.hpp"

#include "kernels/common/cpu/simd.hpp"

namespace clusterkv {

template <>
const cluster::CpuOps& ops_of<cluster::CpuOps, simd::kIsa>() {
  namespace ops = cluster::CLUSTERKV_ISA;
  static constexpr cluster::CpuOps kOps{.assign = ops::assign,
                                        .pack_centroids = ops::pack_centroids,
                                        .order_tokens = ops::order_tokens,
                                        .update_centroids = ops::update_centroids,
                                        .cluster_segment = ops::cluster_segment};
  return kOps;
}

}  // namespace clusterkv
