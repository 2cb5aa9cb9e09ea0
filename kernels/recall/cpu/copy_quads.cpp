// SPDX-License-Identifier: Apache-2.0
//
// copy_quads (stage 4, recall). Contract and shapes: recall/recall.hpp.
//
// Bound: memory; a quad is one contiguous piece on both sides.
#include <cstring>

#include "kernels/recall/cpu/ops.hpp"

namespace clusterkv::recall::CLUSTERKV_ISA {

void copy_quads(const CopyParams& p, int kv_head, const QuadCopy* copies, int count) {
  const std::size_t quad_bytes = p.stored.row_bytes * kQuadRows;
  std::byte* slots = p.slots + static_cast<std::size_t>(kv_head) * p.head_stride;
  for (int i = 0; i < count; ++i) {
    if (copies[i].slot == kNoSlot) continue;
    std::memcpy(slots + copies[i].slot * quad_bytes,
                p.stored.row(kv_head, copies[i].quad * kQuadRows), quad_bytes);
  }
}

}  // namespace clusterkv::recall::CLUSTERKV_ISA
