// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "clusterkv/types.hpp"
#include "src/selection.hpp"

namespace clusterkv {

/// Arguments of ClusterSelector::to_paged().
struct PagedTarget {
  const TensorView& block_table;
  int block_tokens;
  const TensorView& indptr;
  const TensorView& indices;
};

void write_paged(const SelectionReader& reader, int num_rows, int num_kv_heads,
                 const PagedTarget& target);

}  // namespace clusterkv
