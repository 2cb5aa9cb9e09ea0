// SPDX-License-Identifier: Apache-2.0
//
// pack_centroids (stage 1, cluster). Contract and shapes: cluster/cluster.hpp.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cluster/cpu/ops.hpp"
#include "kernels/cluster/rules.hpp"

namespace clusterkv::cluster::CLUSTERKV_ISA {
namespace {

float squared_norm(const float* x, int head_dim) {
  float sum = 0.0F;
  for (int d = 0; d < head_dim; ++d) sum += x[d] * x[d];
  return sum;
}

}  // namespace

void pack_centroids(const PackParams& p) {
  const int padded = (p.num_clusters + kPanel - 1) / kPanel * kPanel;
  std::fill(p.panels, p.panels + std::size_t(padded) * std::size_t(p.head_dim), 0.0F);
  std::fill(p.bias, p.bias + padded, std::numeric_limits<float>::infinity());
  for (int c = 0; c < p.num_clusters; ++c) {
    const float* centroid = p.centroids + std::size_t(c) * std::size_t(p.head_dim);
    const float norm2 = squared_norm(centroid, p.head_dim);
    const float scale =
        p.metric == Metric::kCosine ? 1.0F / std::max(std::sqrt(norm2), kSmallestNorm) : 1.0F;
    p.bias[c] = p.metric == Metric::kL2 ? 0.5F * norm2 : 0.0F;
    float* panel = p.panels + std::size_t(c / kPanel * kPanel) * std::size_t(p.head_dim);
    for (int d = 0; d < p.head_dim; ++d) panel[d * kPanel + c % kPanel] = centroid[d] * scale;
  }
}

}  // namespace clusterkv::cluster::CLUSTERKV_ISA
