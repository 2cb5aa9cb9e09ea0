// SPDX-License-Identifier: Apache-2.0
//
// The ops of this stage for the instruction set that a translation unit is compiled for.
#pragma once

#include "kernels/index/index.hpp"

namespace clusterkv::index::CLUSTERKV_ISA {

void store_segment(const StoreParams& params, const SegmentSource& source,
                   const SegmentTarget& target);
void build_index(const BuildParams& params, const SegmentSource& source,
                 const SegmentTarget& target);
void add_value_sum(const IndexStore& index, int kv_head, std::uint32_t record,
                   std::uint32_t previous_record);

}  // namespace clusterkv::index::CLUSTERKV_ISA
