// SPDX-License-Identifier: Apache-2.0
//
// Which build of the device ops this is. CLUSTERKV_DEVICE names the namespace that holds them: cuda, or
// simt where the executor of tests/simt takes a device's place (CLUSTERKV_SIMT). No CUDA header, so that
// plain C++ can call the ops.
#pragma once

#ifdef CLUSTERKV_SIMT
#define CLUSTERKV_DEVICE simt
#else
#define CLUSTERKV_DEVICE cuda
#endif
