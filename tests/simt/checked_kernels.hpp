// SPDX-License-Identifier: Apache-2.0
//
// Small kernels for the tests of the checker, right or wrong by their arguments.
#pragma once

#include "kernels/common/cuda/device.cuh"

namespace clusterkv::testing {

__global__ void write_at(std::uint32_t* to, std::size_t at);
__global__ void copy_one(const std::uint32_t* from, std::uint32_t* to);
/// Lane 0 writes for the others, some of which wait for it with it.
__global__ void write_then_read(std::uint32_t* word, std::uint32_t* to, unsigned mask,
                                unsigned reader);
/// All lanes but one read what that one then writes.
__global__ void read_then_write(std::uint32_t* word, std::uint32_t* to, unsigned mask,
                                unsigned writer);
/// Lane 0 writes, 0 and 1 meet, then 1 and 2; so 2 may read.
__global__ void pass_by_hand(std::uint32_t* word, std::uint32_t* to, unsigned reader);
/// The second of two blocks reads what both wrote.
__global__ void hand_over(std::uint32_t* words, std::uint32_t* counter, std::uint32_t* to,
                          bool fences);
/// Two blocks with a counter in shared memory, which each has for itself.
__global__ void meet_in_shared(std::uint32_t* words, std::uint32_t* to);
__global__ void rotate(std::uint32_t* to, bool waits, bool writes);
__global__ void add_up(std::uint32_t* to);

}  // namespace clusterkv::testing
