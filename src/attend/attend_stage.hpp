// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "clusterkv/executor.hpp"
#include "kernels/attend/attend.hpp"

namespace clusterkv::attend {

/// Pieces of all rows, then their merge: what `params` asks for of rows and tail.
/// `item_starts` is scratch [num_rows * selection_heads + 1]. Rows without a query are left out.
void attend(const MergeParams& params, int num_rows, std::int32_t* item_starts, Executor& executor);

/// O = 0 and LSE = -inf for one query row.
void write_nothing(const TensorView& out, const TensorView& lse, int query_row);

}  // namespace clusterkv::attend
