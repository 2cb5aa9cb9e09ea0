// SPDX-License-Identifier: Apache-2.0
//
// The ops of this stage for the instruction set that a translation unit is compiled for.
#pragma once

#include "kernels/recall/recall.hpp"

namespace clusterkv::recall::CLUSTERKV_ISA {

void append_rows(const AppendParams& params, int kv_head);
bool all_finite(const TensorView& tensor, std::int64_t first, std::int64_t count);
void read_row(const ReadParams& params, int kv_head, std::uint32_t row, std::int64_t token);
void copy_quads(const CopyParams& params, int kv_head, const QuadCopy* copies, int count);

}  // namespace clusterkv::recall::CLUSTERKV_ISA
