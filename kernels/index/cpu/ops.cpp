// SPDX-License-Identifier: Apache-2.0
#include "kernels/index/cpu/ops.hpp"

#include "kernels/common/cpu/simd.hpp"

namespace clusterkv {

template <>
const index::CpuOps& ops_of<index::CpuOps, simd::kIsa>() {
  namespace ops = index::CLUSTERKV_ISA;
  static constexpr index::CpuOps kOps{.store_segment = ops::store_segment,
                                      .build_index = ops::build_index,
                                      .add_value_sum = ops::add_value_sum};
  return kOps;
}

}  // namespace clusterkv
