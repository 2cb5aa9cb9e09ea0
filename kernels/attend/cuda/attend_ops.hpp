// SPDX-License-Identifier: Apache-2.0
//
// Stage 5 of 5, attend, on a device: whole plans a launch. Pointers inside the parameters are device
// addresses, or mapped host addresses for rows; the contracts are those of attend/attend.hpp. Rows
// are f16 or bf16.
#pragma once

#include "clusterkv/stats.hpp"
#include "kernels/attend/attend.hpp"
#include "kernels/common/cuda/plan_shape.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// Row pieces, tail pieces and their merge: one launch. `arrived` [num_rows, selection_heads] counts
/// finished pieces; 0 before and after.
void attend(const attend::MergeParams& params, std::uint32_t* arrived, const PlanShape& shape);

/// Adds what attend() of these parameters did to stats [2]: of the step, and in total.
void count_step(const attend::MergeParams& params, StepStats* stats, const PlanShape& shape);

/// dense_decode() and sparse_decode(). `partials` has room for num_rows rows. Rows of key and value are
/// f16 or bf16 and begin at multiples of 16 bytes: address and strides are checked.
/// \throws ShapeError  naming the argument
void decode(const attend::DecodeParams& params, const attend::Partials& partials,
            std::uint32_t* arrived, void* stream);

/// merge_states() of all rows and query heads. `outs` and `lses` are device arrays.
void merge_states(const attend::StateParams& params, void* stream);

}  // namespace clusterkv::CLUSTERKV_DEVICE
