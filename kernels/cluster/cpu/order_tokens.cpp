// SPDX-License-Identifier: Apache-2.0
//
// order_tokens (stage 1, cluster). Contract and shapes: cluster/cluster.hpp.
#include <algorithm>

#include "kernels/cluster/cpu/ops.hpp"

namespace clusterkv::cluster::CLUSTERKV_ISA {

void order_tokens(const OrderParams& p) {
  // offset[c + 1] counts label c, then holds where it starts, and ends as where it ends.
  std::fill(p.offset, p.offset + p.num_clusters + 1, 0);
  for (int i = 0; i < p.num_tokens; ++i) ++p.offset[p.labels[i] + 1];
  std::int32_t start = 0;
  for (int c = 0; c < p.num_clusters; ++c) {
    const std::int32_t count = p.offset[c + 1];
    p.offset[c + 1] = start;
    start += count;
  }
  for (int i = 0; i < p.num_tokens; ++i) p.order[p.offset[p.labels[i] + 1]++] = i;
}

}  // namespace clusterkv::cluster::CLUSTERKV_ISA
