// SPDX-License-Identifier: Apache-2.0
//
// Rows of a caller's tensor [rows, heads, dim], of any strides and element type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "clusterkv/types.hpp"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/numeric.hpp"

namespace clusterkv {

CLUSTERKV_HD inline std::byte* tensor_row(const TensorView& tensor, std::int64_t row, int head) {
  return static_cast<std::byte*>(tensor.data) +
         (row * tensor.stride[0] + head * tensor.stride[1]) *
             static_cast<std::int64_t>(size_of(tensor.dtype));
}

CLUSTERKV_HD inline void load_tensor_row(const TensorView& tensor, std::int64_t row, int head,
                                         float* to) {
  const std::byte* from = tensor_row(tensor, row, head);
  const int count = static_cast<int>(tensor.shape[2]);
  const std::int64_t step = tensor.stride[2] * static_cast<std::int64_t>(size_of(tensor.dtype));
  dispatch_row_dtype(tensor.dtype, [&](auto dtype) {
    constexpr DType kDType = decltype(dtype)::value;
    if (tensor.stride[2] == 1) {
      load_elements<kDType>(from, count, to);
      return;
    }
    for (int d = 0; d < count; ++d) load_elements<kDType>(from + d * step, 1, to + d);
  });
}

/// \pre the last stride is 1
CLUSTERKV_HD inline void store_tensor_row(const float* from, const TensorView& tensor,
                                          std::int64_t row, int head) {
  dispatch_row_dtype(tensor.dtype, [&](auto dtype) {
    store_elements<decltype(dtype)::value>(from, static_cast<int>(tensor.shape[2]),
                                           tensor_row(tensor, row, head));
  });
}

}  // namespace clusterkv
