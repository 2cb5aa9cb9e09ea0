// SPDX-License-Identifier: Apache-2.0
//
// What the lanes of a warp do together, and atomics.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt/executor.hpp"

namespace simt {

/// 32 bits of each lane to another one.
std::uint32_t shuffle(unsigned mask, std::uint32_t value, int source, Site site);
unsigned ballot(unsigned mask, bool predicate, Site site);
unsigned match_any(unsigned mask, std::uint32_t value, Site site);
void syncwarp(unsigned mask, Site site);

void ldmatrix(std::uint32_t (&to)[4], const void* row, bool transposed, Site site);
std::uint32_t movmatrix(std::uint32_t matrix, Site site);
void mma_f32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], bool is_bf16,
             Site site);
void mma_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
            Site site);

/// Tells the checker of an atomic access.
void note_atomic(const void* at, std::size_t bytes, Site site);

template <class T>
T shuffle_any(unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) % 4 == 0);
  std::uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &value, sizeof value);
  for (std::uint32_t& word : words) word = shuffle(mask, word, source, site);
  std::memcpy(&value, words, sizeof value);
  return value;
}

}  // namespace simt

inline void __syncthreads(SIMT_SITE) {
  simt::syncthreads(SIMT_GIVEN);
}
inline void __syncwarp(unsigned mask = 0xffffffffU, SIMT_SITE) {
  simt::syncwarp(mask, SIMT_GIVEN);
}
inline void __threadfence() {
  simt::threadfence();
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, SIMT_SITE) {
  return simt::shuffle_any(mask, value, source & 31, SIMT_GIVEN);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, SIMT_SITE) {
  return simt::shuffle_any(mask, value, simt::current_thread->lane ^ bits, SIMT_GIVEN);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int step, SIMT_SITE) {
  const int lane = simt::current_thread->lane;
  return simt::shuffle_any(mask, value, lane >= step ? lane - step : lane, SIMT_GIVEN);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int step, SIMT_SITE) {
  const int lane = simt::current_thread->lane;
  return simt::shuffle_any(mask, value, lane + step < 32 ? lane + step : lane, SIMT_GIVEN);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::ballot(mask, predicate != 0, SIMT_GIVEN);
}
inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::ballot(mask, predicate != 0, SIMT_GIVEN) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::ballot(mask, predicate == 0, SIMT_GIVEN) == 0 ? 1 : 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, SIMT_SITE) {
  static_assert(sizeof(T) == 4);
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return simt::match_any(mask, word, SIMT_GIVEN);
}

inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8) {
    sum += int{static_cast<std::int8_t>(a >> i)} * int{static_cast<std::int8_t>(b >> i)};
  }
  return sum;
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}

// Blocks run one at a time and a fiber gives way only in checked accesses, which these are not.
template <class T, class Change>
SIMT_UNCHECKED T simt_atomic(T* at, const Change& change, simt::Site site) {
  simt::note_atomic(at, sizeof(T), site);
  T before;
  std::memcpy(&before, at, sizeof before);
  const T after = change(before);
  std::memcpy(static_cast<void*>(at), &after, sizeof after);
  return before;
}
template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value, SIMT_SITE) {
  static_assert(std::is_integral_v<T>, "sums of floats have no order");
  return simt_atomic(
      at, [&](T x) { return static_cast<T>(x + value); }, SIMT_GIVEN);
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> value, SIMT_SITE) {
  return simt_atomic(
      at, [&](T x) { return x < value ? x : value; }, SIMT_GIVEN);
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value, SIMT_SITE) {
  return simt_atomic(
      at, [&](T x) { return x < value ? value : x; }, SIMT_GIVEN);
}
template <class T>
T atomicExch(T* at, std::type_identity_t<T> value, SIMT_SITE) {
  return simt_atomic(
      at, [&](T) { return value; }, SIMT_GIVEN);
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value, SIMT_SITE) {
  return simt_atomic(
      at, [&](T x) { return x == expected ? value : x; }, SIMT_GIVEN);
}
