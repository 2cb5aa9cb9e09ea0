// SPDX-License-Identifier: Apache-2.0
//
// store_segment (stage 2, index). Contract and shapes: index/index.hpp.
//
// Bound: memory, each row is read and written once.
#include <cstring>

#include "kernels/index/cpu/ops.hpp"

namespace clusterkv::index::CLUSTERKV_ISA {

void store_segment(const StoreParams& p, const SegmentSource& source, const SegmentTarget& target) {
  for (int i = 0; i < source.num_tokens; ++i) {
    const int token = p.order == nullptr ? i : p.order[i];
    const std::uint32_t to = paged_row(target.row_pages, target.segment.first_row + i);
    p.positions[source.kv_head * p.positions_stride + to] =
        static_cast<std::uint32_t>(source.first_token + token);
    if (p.stored.base == nullptr) continue;
    const std::uint32_t from = paged_row(source.live_pages, source.first_live_row + token);
    std::memcpy(p.stored.row(source.kv_head, to), p.live.row(source.kv_head, from),
                p.stored.row_bytes);
  }
}

}  // namespace clusterkv::index::CLUSTERKV_ISA
