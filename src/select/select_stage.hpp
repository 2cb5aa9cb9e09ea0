// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "clusterkv/executor.hpp"
#include "kernels/select/select.hpp"

namespace clusterkv::select {

/// Scores of all rows. `item_starts` is scratch [num_rows * num_kv_heads + 1].
void score(const ScoreParams& params, int num_rows, std::int32_t* item_starts, Executor& executor);

/// Choice of all rows. `scratch` has arrays [clusters of all rows, selection_heads].
void choose(const SelectParams& params, int num_rows, const SelectScratch& scratch,
            Executor& executor);

/// Store rows of all lists.
void expand(const SelectParams& params, int num_rows, Executor& executor);

}  // namespace clusterkv::select
