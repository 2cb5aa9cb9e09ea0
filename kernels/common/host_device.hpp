// SPDX-License-Identifier: Apache-2.0
//
// Marks functions that both backends call, so that neither can decide otherwise.
#pragma once

#ifdef __CUDACC__
#define CLUSTERKV_HD __host__ __device__
#else
#define CLUSTERKV_HD
#endif
