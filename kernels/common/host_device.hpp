// SPDX-License-Identifier: Apache-2.0
//
// Marks functions that both backends call, so that neither can decide otherwise.
#pragma once

#if defined(__CUDACC__)
#define CLUSTERKV_HD __host__ __device__
#elif defined(CLUSTERKV_ISA)
// A translation unit for one instruction set must not leave a function behind that the linker might
// take for all of them (docs/decisions/005).
#define CLUSTERKV_HD [[gnu::always_inline]]
#else
#define CLUSTERKV_HD
#endif
