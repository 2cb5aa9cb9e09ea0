// SPDX-License-Identifier: Apache-2.0
//
// The ops of this stage for the instruction set that a translation unit is compiled for.
#pragma once

#include "kernels/attend/attend.hpp"

namespace clusterkv::attend::CLUSTERKV_ISA {

void attend_rows(const AttendParams& params, int row, int head, int piece);
void attend_tail(const AttendParams& params, int row, int head, int piece);
void merge_partials(const MergeParams& params, int row, int q_head);
void decode(const DecodeParams& params, int row, int head);
void merge_states(const StateParams& params, std::int64_t row, int q_head);

}  // namespace clusterkv::attend::CLUSTERKV_ISA
