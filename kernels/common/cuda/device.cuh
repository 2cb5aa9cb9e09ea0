// SPDX-License-Identifier: Apache-2.0
//
// What kernels are written in: the CUDA language and the named instructions of native.cuh. A kernel
// includes this and never spells an instruction itself, so that the same source also compiles with a
// host compiler against the executor in tests/simt.
//
// CLUSTERKV_DEVICE names the namespace of the result: cuda or simt.
#pragma once

#ifdef __CUDACC__
#define CLUSTERKV_DEVICE cuda
#include "kernels/common/cuda/native.cuh"
#else
#define CLUSTERKV_DEVICE simt
#include <simt/device.hpp>
#endif
