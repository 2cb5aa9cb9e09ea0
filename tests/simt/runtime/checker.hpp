// SPDX-License-Identifier: Apache-2.0
//
// What the executor tells the checker. Accesses come from instrumented kernels, see checker.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simt/executor.hpp"

namespace simt::checker {

enum class Kind : unsigned char { kRead, kWrite, kAtomic };

/// Whether kernels are instrumented, so that initialisation and races can be judged.
bool is_on();

void begin_launch();
void begin_block();
void passed_barrier();
void passed_syncwarp(int warp, std::uint32_t mask);
void fence(bool& has_fenced);

/// An access at `site`, or at the instruction `pc` if that is not null.
void access(const void* at, std::size_t bytes, Kind kind, Site site, const void* pc);

}  // namespace simt::checker
