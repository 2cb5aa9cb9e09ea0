// SPDX-License-Identifier: Apache-2.0
#include "checked_kernels.hpp"

namespace clusterkv::testing {

__global__ void write_at(std::uint32_t* to, std::size_t at) {
  to[at] = 1;
}
__global__ void copy_one(const std::uint32_t* from, std::uint32_t* to) {
  *to = *from;
}
__global__ void write_then_read(std::uint32_t* word, std::uint32_t* to, unsigned mask,
                                unsigned reader) {
  if (threadIdx.x == 0) *word = 1;
  if ((mask >> threadIdx.x % 32 & 1U) != 0) __syncwarp(mask);
  if (threadIdx.x == reader) *to = *word;
}
__global__ void read_then_write(std::uint32_t* word, std::uint32_t* to, unsigned mask,
                                unsigned writer) {
  if (threadIdx.x != writer) to[threadIdx.x] = *word;
  if ((mask >> threadIdx.x & 1U) != 0) __syncwarp(mask);
  if (threadIdx.x == writer) *word = 1;
}
__global__ void pass_by_hand(std::uint32_t* word, std::uint32_t* to, unsigned reader) {
  if (threadIdx.x == 0) *word = 1;
  if (threadIdx.x <= 1) __syncwarp(3);
  if (threadIdx.x == 1 || threadIdx.x == 2) __syncwarp(6);
  if (threadIdx.x == reader) *to = *word;
}
__global__ void hand_over(std::uint32_t* words, std::uint32_t* counter, std::uint32_t* to,
                          bool fences) {
  words[blockIdx.x] = 1;
  if (fences) __threadfence();
  if (atomicAdd(counter, 1U) == 1) *to = words[0] + words[1];
}
__global__ void meet_in_shared(std::uint32_t* words, std::uint32_t* to) {
  __shared__ std::uint32_t counter;
  counter = 0;
  words[blockIdx.x] = 1;
  __threadfence();
  atomicAdd(&counter, 1U);
  if (blockIdx.x == 1) *to = words[0];
}
namespace {

template <int kThreads>
__device__ std::uint32_t* static_words() {
  __shared__ std::uint32_t words[kThreads];
  return words;
}

}  // namespace

__global__ void rotate(std::uint32_t* to, bool waits, bool writes) {
  __shared__ std::uint32_t first;
  std::uint32_t* words = static_words<64>();
  if (writes) words[threadIdx.x] = threadIdx.x;
  if (threadIdx.x == 0) first = 5;
  if (waits) __syncthreads();
  to[threadIdx.x] = words[(threadIdx.x + 32) % 64] + first;
}
__global__ void add_up(std::uint32_t* to) {
  __shared__ std::uint32_t sum;
  if (blockIdx.x == 0) sum = 0;
  sum += 1;
  *to = sum;
}

}  // namespace clusterkv::testing
