// SPDX-License-Identifier: Apache-2.0
//
// Rows of 16-bit elements, read 16 bytes at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/cuda/device.cuh"
#include "kernels/common/numeric.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// Elements of one 16-byte chunk.
inline constexpr int kChunk = 8;

/// The element type that mma takes for a stored dtype.
template <DType kDType>
struct RowType;
template <>
struct RowType<DType::kF16> {
  using Type = Half;
};
template <>
struct RowType<DType::kBF16> {
  using Type = BFloat16;
};
template <DType kDType>
using RowElement = typename RowType<kDType>::Type;

/// 16 bytes of a row in global memory. The compiler cannot know that of an address it reads from shared
/// memory, and would make it a generic load.
__device__ inline uint4 load_global128(const std::byte* from) {
#ifndef CLUSTERKV_SIMT
  __builtin_assume(__isGlobal(from) != 0);
#endif
  return load128(from);
}

/// The two elements of a word, the low one first.
template <DType kDType>
__device__ inline float2 unpack(std::uint32_t word) {
  return {Element<kDType>::load(static_cast<std::uint16_t>(word)),
          Element<kDType>::load(static_cast<std::uint16_t>(word >> 16))};
}

template <DType kDType>
__device__ inline std::uint32_t pack(float low, float high) {
  return std::uint32_t{Element<kDType>::store(low)} | std::uint32_t{Element<kDType>::store(high)}
                                                          << 16;
}

template <DType kDType>
__device__ inline void unpack_chunk(const uint4& chunk, float (&to)[kChunk]) {
  const std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<kDType>(words[i]);
    to[2 * i] = pair.x;
    to[2 * i + 1] = pair.y;
  }
}

template <DType kDType>
__device__ inline uint4 pack_chunk(const float (&from)[kChunk]) {
  return {pack<kDType>(from[0], from[1]), pack<kDType>(from[2], from[3]),
          pack<kDType>(from[4], from[5]), pack<kDType>(from[6], from[7])};
}

/// Where chunk `chunk` of row `row` lies in a tile of rows in shared memory whose pitch is a multiple
/// of 128 bytes, so that the same chunks of eight rows fall into different banks.
__device__ inline int swizzled(int row, int chunk) {
  return chunk ^ (row & 7);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
