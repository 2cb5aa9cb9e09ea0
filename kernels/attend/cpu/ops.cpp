// SPDX-License-Identifier: Apache-2.0
#include "kernels/attend/cpu/ops.hpp"

#include "kernels/common/cpu/simd.hpp"

namespace clusterkv {

template <>
const attend::CpuOps& ops_of<attend::CpuOps, simd::kIsa>() {
  namespace ops = attend::CLUSTERKV_ISA;
  static constexpr attend::CpuOps kOps{.attend_rows = ops::attend_rows,
                                       .attend_tail = ops::attend_tail,
                                       .merge_partials = ops::merge_partials,
                                       .decode = ops::decode,
                                       .merge_states = ops::merge_states};
  return kOps;
}

}  // namespace clusterkv
