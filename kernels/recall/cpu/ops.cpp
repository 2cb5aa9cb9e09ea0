// SPDX-License-Identifier: Apache-2.0
#include "kernels/recall/cpu/ops.hpp"

#include "kernels/common/cpu/simd.hpp"

namespace clusterkv {

template <>
const recall::CpuOps& ops_of<recall::CpuOps, simd::kIsa>() {
  namespace ops = recall::CLUSTERKV_ISA;
  static constexpr recall::CpuOps kOps{.append_rows = ops::append_rows,
                                       .all_finite = ops::all_finite,
                                       .read_row = ops::read_row,
                                       .copy_quads = ops::copy_quads};
  return kOps;
}

}  // namespace clusterkv
