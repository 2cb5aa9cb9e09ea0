// SPDX-License-Identifier: Apache-2.0
//
// CUDA's vector and index types, and 16-bit elements by name only: kernels convert them with
// kernels/common/numeric.hpp.
#pragma once

#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace simt {

struct Half {};
struct BFloat16 {};

}  // namespace simt
