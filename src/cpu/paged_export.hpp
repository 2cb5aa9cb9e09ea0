// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "src/cpu/selection.hpp"

namespace clusterkv::cpu {

void write_paged(const SelectionReader& reader, int num_rows, int num_kv_heads,
                 const PagedTarget& target);

}  // namespace clusterkv::cpu
