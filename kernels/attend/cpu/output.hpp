// SPDX-License-Identifier: Apache-2.0
//
// Writes a finished state to the caller's tensors.
#pragma once

#include <cmath>
#include <cstdint>

#include "clusterkv/types.hpp"
#include "kernels/common/math.hpp"
#include "kernels/common/tensor_io.hpp"

namespace clusterkv::attend::CLUSTERKV_ISA {

/// out[row, q_head] = o / l, lse[row, q_head] = ln of the denominator. Nothing attended: 0 and -inf.
inline void write_output(const TensorView& out, const TensorView& lse, std::int64_t row, int q_head,
                         float m, float l, const float* o) {
  const int value_dim = static_cast<int>(out.shape[2]);
  float result[kMaxHeadDim] = {};
  if (l > 0.0F) {
    for (int d = 0; d < value_dim; ++d) result[d] = o[d] / l;
  }
  store_tensor_row(result, out, row, q_head);
  if (lse.empty()) return;
  const float value = l > 0.0F ? kLn2 * (m + std::log2(l)) : kMinusInfinity;
  static_cast<float*>(lse.data)[row * lse.stride[0] + q_head * lse.stride[1]] = value;
}

}  // namespace clusterkv::attend::CLUSTERKV_ISA
