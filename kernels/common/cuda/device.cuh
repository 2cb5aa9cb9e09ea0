// SPDX-License-Identifier: Apache-2.0
//
// What kernels are written in: the CUDA language and the named instructions of native.cuh. A kernel
// includes this and never spells an instruction itself, so that the same source also compiles with a
// host compiler against the executor in tests/simt.
#pragma once

#include "kernels/common/cuda/backend.hpp"

#ifdef CLUSTERKV_SIMT
#include <simt/device.hpp>
#else
#include "kernels/common/cuda/native.cuh"
#endif
