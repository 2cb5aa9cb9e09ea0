// SPDX-License-Identifier: Apache-2.0
//
// assign (stage 1, cluster). Contract and shapes: cluster/cluster.hpp. By vectors: assign_block.hpp; by
// matrix units, where the instruction set has them: assign_tiles.hpp.
#include <algorithm>

#include "kernels/cluster/cpu/assign_block.hpp"
#include "kernels/cluster/cpu/assign_tiles.hpp"
#include "kernels/common/dispatch.hpp"

namespace clusterkv::cluster::CLUSTERKV_ISA {
namespace {

template <DType kDType, int kHeadDim>
void assign(const AssignParams& p) {
#ifdef __AMX_BF16__
  TileAssigner<kDType, kHeadDim>(p).run();
#else
  alignas(64) float keys[kBlock][kHeadDim] = {};
  for (int first = 0; first < p.keys.num_tokens; first += kBlock) {
    const int count = std::min(kBlock, p.keys.num_tokens - first);
    for (int i = 0; i < count; ++i) widen<kDType, kHeadDim>(p.keys, first + i, keys[i]);
    assign_block<kHeadDim>(p, keys, count, p.labels + first);
  }
#endif
}

}  // namespace

void assign(const AssignParams& p) {
  dispatch_row_dtype(p.keys.store.dtype, [&](auto dtype) {
    dispatch_head_dim(p.keys.store.head_dim,
                      [&](auto head_dim) { assign<dtype.value, head_dim.value>(p); });
  });
}

}  // namespace clusterkv::cluster::CLUSTERKV_ISA
