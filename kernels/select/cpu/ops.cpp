// SPDX-License-Identifier: Apache-2.0
#include "kernels/select/cpu/ops.hpp"

#include "kernels/common/cpu/simd.hpp"

namespace clusterkv {

template <>
const select::CpuOps& ops_of<select::CpuOps, simd::kIsa>() {
  namespace ops = select::CLUSTERKV_ISA;
  static constexpr select::CpuOps kOps{.score_clusters = ops::score_clusters,
                                       .select_clusters = ops::select_clusters,
                                       .expand_rows = ops::expand_rows,
                                       .combine_blocks = ops::combine_blocks};
  return kOps;
}

}  // namespace clusterkv
