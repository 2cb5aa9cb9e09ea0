// SPDX-License-Identifier: Apache-2.0
//
// Structs of the C API as those of the C++ API, and back.
#pragma once

#include <cstddef>

#include "src/c_handles.hpp"

namespace clusterkv::c {

/// \throws BackendUnavailable  if it is none
Backend to_backend(std::int32_t backend);
CacheConfig to_config(const ckv_config* config);
void fill_config(const CacheConfig& from, ckv_config& to);
PlanLimits to_limits(const ckv_plan_limits* limits);
void fill_needs(const MemoryNeeds& from, ckv_memory_needs* to);
void fill_stats(const CacheStats& from, ckv_stats* to);
Workspace to_workspace(const ckv_workspace* workspace);

/// \param max_rows  of the plan's limits: more are refused unread
void to_rows(const ckv_step_row* rows, std::size_t num_rows, std::int32_t max_rows,
             std::vector<StepRow>& to);

/// \param stream  NULL: the default of `backend`
Stream to_stream(const ckv_stream* stream, Backend backend = Backend::kCpu);
Executor* to_executor(ckv_executor* executor);

/// A tensor that must be there. Extents are left to whom they matter.
/// \throws ShapeError  rank, device, alignment
/// \throws DTypeError
TensorView to_view(const ckv_tensor* tensor, const char* name);
/// Empty for NULL.
TensorView to_optional_view(const ckv_tensor* tensor, const char* name);

AttentionOut to_out(const ckv_attention_out* out);
AttendArgs to_attend_args(const ckv_attend_args* args);
Selection to_selection(const ckv_selection* selection);
/// The plan keeps shape and strides.
void fill_selection(const Selection& from, ckv_plan& plan, ckv_selection& to);

}  // namespace clusterkv::c
