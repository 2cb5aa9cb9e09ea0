// SPDX-License-Identifier: Apache-2.0
//
// Elements of the caller's tensors, f32, f16 or bf16, by their offset in elements.
#pragma once

#include <cstdint>

#include "clusterkv/types.hpp"
#include "kernels/common/cuda/device.cuh"
#include "kernels/common/numeric.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

__device__ inline void store_element(const TensorView& tensor, std::int64_t at, float value) {
  switch (tensor.dtype) {
    case DType::kF32: static_cast<float*>(tensor.data)[at] = value; break;
    case DType::kF16: static_cast<std::uint16_t*>(tensor.data)[at] = float_to_f16(value); break;
    default: static_cast<std::uint16_t*>(tensor.data)[at] = float_to_bf16(value); break;
  }
}

__device__ inline float load_element(const TensorView& tensor, std::int64_t at) {
  switch (tensor.dtype) {
    case DType::kF32: return static_cast<const float*>(tensor.data)[at];
    case DType::kF16: return f16_to_float(static_cast<const std::uint16_t*>(tensor.data)[at]);
    default: return bf16_to_float(static_cast<const std::uint16_t*>(tensor.data)[at]);
  }
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
