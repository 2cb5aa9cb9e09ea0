// SPDX-License-Identifier: Apache-2.0
//
// append_rows, all_finite, read_row (stage 4, recall). Contract and shapes: recall/recall.hpp.
//
// Bound: memory.
#include <cmath>
#include <cstring>

#include "kernels/common/dispatch.hpp"
#include "kernels/common/numeric.hpp"
#include "kernels/common/tensor_io.hpp"
#include "kernels/recall/cpu/ops.hpp"

namespace clusterkv::recall::CLUSTERKV_ISA {
namespace {

void store_row(const float* from, int count, DType dtype, std::byte* to) {
  dispatch_row_dtype(dtype,
                     [&](auto type) { store_elements<decltype(type)::value>(from, count, to); });
}

}  // namespace

void append_rows(const AppendParams& p, int kv_head) {
  float row[kMaxHeadDim] = {};
  for (int i = 0; i < p.num_tokens; ++i) {
    std::byte* to = p.live.row(kv_head, paged_row(p.pages, p.first_row + i));
    load_tensor_row(p.key, p.first_token + i, kv_head, row);
    store_row(row, p.live.head_dim, p.live.dtype, to);
    to += p.live.key_bytes();
    if (p.value.empty()) {
      std::memset(to, 0, p.live.value_bytes());
      continue;
    }
    load_tensor_row(p.value, p.first_token + i, kv_head, row);
    store_row(row, p.live.value_dim, p.live.dtype, to);
  }
}

bool all_finite(const TensorView& tensor, std::int64_t first, std::int64_t count) {
  float row[kMaxHeadDim];
  for (std::int64_t token = first; token < first + count; ++token) {
    for (int head = 0; head < tensor.shape[1]; ++head) {
      load_tensor_row(tensor, token, head, row);
      for (int d = 0; d < tensor.shape[2]; ++d) {
        if (!std::isfinite(row[d])) return false;
      }
    }
  }
  return true;
}

void read_row(const ReadParams& p, int kv_head, std::uint32_t row, std::int64_t token) {
  const std::byte* from = p.store.row(kv_head, row);
  float wide[kMaxHeadDim] = {};
  for (const TensorView* tensor : {&p.key, &p.value}) {
    const int dim = tensor == &p.key ? p.store.head_dim : p.store.value_dim;
    dispatch_row_dtype(p.store.dtype,
                       [&](auto dtype) { load_elements<decltype(dtype)::value>(from, dim, wide); });
    store_tensor_row(wide, *tensor, token, kv_head);
    from += p.store.key_bytes();
  }
}

}  // namespace clusterkv::recall::CLUSTERKV_ISA
