// SPDX-License-Identifier: Apache-2.0
//
// What warps and blocks compute together: sums in a fixed order, scans, the last block of a group.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/cuda/device.cuh"

namespace clusterkv::CLUSTERKV_DEVICE {

inline constexpr unsigned kAllLanes = 0xffffffffU;
inline constexpr int kWarpLanes = 32;

/// Size of a kernel's shared memory, within what a block may have on sm_80. sm_86, sm_89 and sm_120 give
/// 99 KiB: the launch of a kernel with more fails there.
template <class Shared>
constexpr std::size_t shared_size() {
  static_assert(sizeof(Shared) <= 163 * 1024);
  return sizeof(Shared);
}

__device__ inline int lane_id() {
  return static_cast<int>(threadIdx.x) % kWarpLanes;
}
__device__ inline int warp_id() {
  return static_cast<int>(threadIdx.x) / kWarpLanes;
}

/// Sum of the values of kLanes neighbouring lanes in the order of math.hpp's tree_sum(): lanes i and
/// i + kLanes / 2 first. All of them get it.
template <int kLanes>
__device__ inline float tree_sum_lanes(float value) {
  for (int step = kLanes / 2; step > 0; step /= 2) {
    value = value + __shfl_xor_sync(kAllLanes, value, step);
  }
  return value;
}

/// Largest value of lanes that differ in the bits of `first` .. 16 of their number; NaN is left out.
__device__ inline float max_lanes(float value, int first = 1) {
  for (int step = first; step < kWarpLanes; step *= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

/// Exclusive prefix sums over a block of kThreads threads. Its memory is free again after any call,
/// so calls may follow each other.
template <int kThreads>
class BlockScan {
 public:
  struct Storage {
    int warp_sum[kThreads / kWarpLanes];
  };
  __device__ explicit BlockScan(Storage& storage) : storage_(storage) {}

  /// Sum of the threads before this one; `total` is the sum of all.
  __device__ int exclusive(int value, int& total) {
    int inclusive = value;
    for (int step = 1; step < kWarpLanes; step *= 2) {
      const int below = __shfl_up_sync(kAllLanes, inclusive, step);
      if (lane_id() >= step) inclusive += below;
    }
    if (lane_id() == kWarpLanes - 1) storage_.warp_sum[warp_id()] = inclusive;
    __syncthreads();
    int before = 0;
    total = 0;
    for (int warp = 0; warp < kThreads / kWarpLanes; ++warp) {
      if (warp == warp_id()) before = total;
      total += storage_.warp_sum[warp];
    }
    __syncthreads();
    return before + inclusive - value;
  }

 private:
  Storage& storage_;
};

/// Whether this block is the last of `group_size` that come here with the same counter, which is 0
/// before and after. What the others wrote to global memory before is then visible to all threads.
/// `is_last` is a word of shared memory.
__device__ inline bool arrive_last(std::uint32_t* counter, int group_size, int& is_last) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const std::uint32_t before = atomicAdd(counter, 1U);
    is_last = before + 1 == static_cast<std::uint32_t>(group_size) ? 1 : 0;
    if (is_last != 0) atomicExch(counter, 0U);
    __threadfence();
  }
  __syncthreads();
  return is_last != 0;
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
