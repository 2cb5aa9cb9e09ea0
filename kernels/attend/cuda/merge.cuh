// SPDX-License-Identifier: Apache-2.0
//
// Partials of pieces to the caller's output, in the order of the pieces. A thread holds one element.
#pragma once

#include <cstdint>

#include "kernels/attend/attend.hpp"
#include "kernels/common/cuda/device.cuh"
#include "kernels/common/cuda/tensor_io.cuh"
#include "kernels/common/math.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// A state of which one thread knows m, l and one element of o.
struct ElementState {
  float m = kMinusInfinity;
  float l = 0.0F;
  float o = 0.0F;

  /// Adds another one; states with l = 0 are empty.
  __device__ void add(float m2, float l2, float o2) {
    if (!(l2 > 0.0F)) return;
    if (!(l > 0.0F)) {
      m = m2;
      l = l2;
      o = o2;
      return;
    }
    const float max = m > m2 ? m : m2;
    const float a = exp2_fixed(m - max);
    const float b = exp2_fixed(m2 - max);
    m = max;
    l = l * a + l2 * b;
    o = o * a + o2 * b;
  }
};

/// Element d of one output row, and its LSE. Nothing attended: 0 and -inf.
__device__ inline void write_output(const TensorView& out, const TensorView& lse, std::int64_t row,
                                    int q_head, int d, const ElementState& state) {
  const bool any = state.l > 0.0F;
  store_element(out, row * out.stride[0] + q_head * out.stride[1] + d * out.stride[2],
                any ? state.o / state.l : 0.0F);
  if (lse.empty() || d != 0) return;
  static_cast<float*>(lse.data)[row * lse.stride[0] + q_head * lse.stride[1]] =
      any ? kLn2 * (state.m + log2f(state.l)) : kMinusInfinity;
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
