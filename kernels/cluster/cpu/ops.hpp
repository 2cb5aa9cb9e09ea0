// SPDX-License-Identifier: Apache-2.0
//
// The ops of this stage for the instruction set that a translation unit is compiled for.
#pragma once

#include "kernels/cluster/cluster.hpp"

namespace clusterkv::cluster::CLUSTERKV_ISA {

void assign(const AssignParams& params);
void pack_centroids(const PackParams& params);
void order_tokens(const OrderParams& params);
void update_centroids(const UpdateParams& params);
void cluster_segment(const SegmentParams& params, const SegmentScratch& scratch);

}  // namespace clusterkv::cluster::CLUSTERKV_ISA
