// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "src/index/cluster_index.hpp"
#include "src/recall/row_stores.hpp"
#include "src/stages.hpp"

namespace clusterkv::cpu {

/// Where the rows of one layer lie.
struct RowSource {
  RowStore live;
  RowStore stored;
  const std::uint32_t* positions;
  std::int64_t positions_stride;
  int num_kv_heads;
};

/// ClusterKVCache::read_rows().
void read_rows(const RowSource& source, const RowRange& range, const Sequence& sequence,
               const TensorView& key, const TensorView& value);

}  // namespace clusterkv::cpu
