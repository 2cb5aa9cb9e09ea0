// SPDX-License-Identifier: Apache-2.0
//
// assign (stage 1, cluster). Contract and shapes: cluster/cluster.hpp.
//
// Mapping: a tile of kTile keys, widened once, against panels of kPanel centroids; the dot product
//          of a pair is summed over head_dim in order, so tiles do not change a bit.
// Bound:   arithmetic. The running maximum keeps scores in registers.
#include <algorithm>
#include <limits>

#include "kernels/cluster/cpu/ops.hpp"
#include "kernels/cluster/rules.hpp"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/numeric.hpp"

namespace clusterkv::cluster::CLUSTERKV_ISA {
namespace {

constexpr int kTile = 4;

template <int kHeadDim>
void score_panel(const float (&keys)[kTile][kHeadDim], const float* panel,
                 float (&score)[kTile][kPanel]) {
  for (auto& row : score) std::fill(std::begin(row), std::end(row), 0.0F);
  for (int d = 0; d < kHeadDim; ++d) {
    const float* centroid = panel + d * kPanel;
    for (int i = 0; i < kTile; ++i) {
      for (int c = 0; c < kPanel; ++c) score[i][c] += keys[i][d] * centroid[c];
    }
  }
}

template <int kHeadDim>
void assign_tile(const AssignParams& p, const float (&keys)[kTile][kHeadDim], int count,
                 std::int32_t* labels) {
  float best[kTile];
  std::fill(std::begin(best), std::end(best), -std::numeric_limits<float>::infinity());
  std::int32_t label[kTile] = {};
  for (int first = 0; first < p.num_clusters; first += kPanel) {
    float score[kTile][kPanel];
    score_panel<kHeadDim>(keys, p.centroids + std::size_t(first) * kHeadDim, score);
    for (int i = 0; i < kTile; ++i) {
      for (int c = 0; c < kPanel; ++c) {
        const float value = score[i][c] - p.bias[first + c];
        if (!is_better(value, best[i])) continue;
        best[i] = value;
        label[i] = first + c;
      }
    }
  }
  std::copy(label, label + count, labels);
}

template <DType kDType, int kHeadDim>
void assign(const AssignParams& p) {
  const KeyRun& run = p.keys;
  alignas(64) float keys[kTile][kHeadDim] = {};
  for (int first = 0; first < run.num_tokens; first += kTile) {
    const int count = std::min(kTile, run.num_tokens - first);
    for (int i = 0; i < count; ++i) {
      const std::uint32_t row = paged_row(run.pages, run.first_row + first + i);
      load_elements<kDType>(run.store.row(run.kv_head, row), kHeadDim, keys[i]);
    }
    assign_tile<kHeadDim>(p, keys, count, p.labels + first);
  }
}

}  // namespace

void assign(const AssignParams& p) {
  dispatch_row_dtype(p.keys.store.dtype, [&](auto dtype) {
    dispatch_head_dim(p.keys.store.head_dim,
                      [&](auto head_dim) { assign<dtype.value, head_dim.value>(p); });
  });
}

}  // namespace clusterkv::cluster::CLUSTERKV_ISA
