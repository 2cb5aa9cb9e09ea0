// SPDX-License-Identifier: Apache-2.0
//
// What a launch over a whole plan needs to know on the host. Everything else is read on the device, so
// that a captured launch serves any step within these bounds.
#pragma once

#include "kernels/common/cuda/backend.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

struct PlanShape {
  int num_rows;    ///< rows of the plan, padding included; at most 65535, an axis of the grid
  int max_blocks;  ///< index blocks of the longest row, at most
  void* stream;    ///< cudaStream_t
};

}  // namespace clusterkv::CLUSTERKV_DEVICE
