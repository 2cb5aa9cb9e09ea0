// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "clusterkv/types.hpp"
#include "src/core.hpp"

namespace clusterkv {

struct RowRange {
  int layer;
  SequenceId id;
  std::int64_t first;
  std::int64_t last;
};

/// ClusterKVCache::read_rows().
void read_rows(const Core& core, const RowRange& range, const TensorView& key,
               const TensorView& value);

}  // namespace clusterkv
