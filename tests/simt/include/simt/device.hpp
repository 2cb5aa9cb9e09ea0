// SPDX-License-Identifier: Apache-2.0
//
// The CUDA language for a host compiler: what kernels/common/cuda/native.cuh is to nvcc, by the same
// names. Blocks run on the executor of simt/executor.hpp, a fiber a thread.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "simt/executor.hpp"
#include "simt/streams.hpp"
#include "simt/types.hpp"
#include "simt/warp.hpp"

// Kernels see the words of the language, so these have its names.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// Of a program's thread-local variables the executor knows where they lie, templates' too; so they are
// the static shared memory of the running block, and nothing else in the program may be thread-local.
#define __shared__ static thread_local

#define threadIdx (::simt::current_thread->index)
#define blockIdx (::simt::current_thread->block->index)
#define blockDim (::simt::current_thread->block->block_dim)
#define gridDim (::simt::current_thread->block->grid_dim)

namespace clusterkv::simt {

using ::simt::BFloat16;
using ::simt::Half;
using ::simt::LaunchConfig;

using std::max;
using std::min;

// ------------------------------------------------------------------------------------- memory
/// The dynamic shared memory of the block, as one object.
template <class T>
T& dynamic_shared(SIMT_SITE) {
  return *static_cast<T*>(::simt::dynamic_shared(sizeof(T), SIMT_GIVEN));
}

SIMT_UNCHECKED inline uint4 load128(const void* from, SIMT_SITE) {
  ::simt::check_read(from, 16, 16, SIMT_GIVEN);
  uint4 value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
SIMT_UNCHECKED inline void store128(void* to, const uint4& value, SIMT_SITE) {
  ::simt::check_write(to, 16, 16, SIMT_GIVEN);
  std::memcpy(to, &value, sizeof value);
}

inline void cp_async16(void* to, const void* from, SIMT_SITE) {
  ::simt::copy_async(to, from, SIMT_GIVEN);
}
inline void cp_async_commit() {
  ::simt::commit_copies();
}
template <int kPending>
void cp_async_wait() {
  ::simt::wait_copies(kPending);
}

// ------------------------------------------------------------------------------------- matrix
inline void ldmatrix_x4(std::uint32_t (&to)[4], const void* row, SIMT_SITE) {
  ::simt::ldmatrix(to, row, false, SIMT_GIVEN);
}
inline void ldmatrix_x4_trans(std::uint32_t (&to)[4], const void* row, SIMT_SITE) {
  ::simt::ldmatrix(to, row, true, SIMT_GIVEN);
}
inline std::uint32_t movmatrix_trans(std::uint32_t matrix, SIMT_SITE) {
  return ::simt::movmatrix(matrix, SIMT_GIVEN);
}

template <class Row>
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                  SIMT_SITE) {
  ::simt::mma_f32(d, a, b, std::is_same_v<Row, BFloat16>, SIMT_GIVEN);
}
inline void mma_m16n8k32_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                            const std::uint32_t (&b)[2], SIMT_SITE) {
  ::simt::mma_s8(d, a, b, SIMT_GIVEN);
}

// ------------------------------------------------------------------------------------- launch
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), const LaunchConfig& config, const Args&... args) {
  // By value, as a device gets them: the launch may run long after the call.
  ::simt::enqueue(config.stream, [kernel, config, ... params = static_cast<Params>(args)] {
    ::simt::run(config, [&]() SIMT_UNCHECKED { kernel(params...); });
  });
}

}  // namespace clusterkv::simt
