// SPDX-License-Identifier: Apache-2.0
//
// Conversions between stored element types and float. Plain integer arithmetic, so that a compiler
// vectorises them for any instruction set; all rounding is to nearest, ties to even.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "clusterkv/types.hpp"
#include "kernels/common/host_device.hpp"

namespace clusterkv {

CLUSTERKV_HD inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

CLUSTERKV_HD inline std::uint16_t float_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
  const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
  return static_cast<std::uint16_t>((is_nan ? bits | 0x400000U : rounded) >> 16);
}

CLUSTERKV_HD inline float f16_to_float(std::uint16_t half) {
  // Moves exponent and mantissa into place; the multiplication repairs the exponent's bias and
  // makes subnormals normal. Infinity and NaN need the full exponent put back.
  const std::uint32_t magnitude = (half & 0x7fffU) << 13;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112F;
  const std::uint32_t finite = std::bit_cast<std::uint32_t>(scaled);
  const std::uint32_t special = magnitude | 0x7f800000U;
  const std::uint32_t sign = (half & 0x8000U) << 16;
  return std::bit_cast<float>(sign | (magnitude >= 0x0f800000U ? special : finite));
}

CLUSTERKV_HD inline std::uint16_t float_to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<std::uint16_t>(sign | 0x7e00U);
  if (magnitude >= 0x477ff000U) return static_cast<std::uint16_t>(sign | 0x7c00U);
  if (magnitude < 0x38800000U) {
    // Subnormal: adding 0.5 puts the last bit of an f16 subnormal at the last bit of a float.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U));
  }
  const std::uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

/// How one stored element is read and written.
template <DType kDType>
struct Element;

template <>
struct Element<DType::kF32> {
  using Storage = float;
  CLUSTERKV_HD static float load(Storage bits) { return bits; }
  CLUSTERKV_HD static Storage store(float value) { return value; }
};

template <>
struct Element<DType::kF16> {
  using Storage = std::uint16_t;
  CLUSTERKV_HD static float load(Storage bits) { return f16_to_float(bits); }
  CLUSTERKV_HD static Storage store(float value) { return float_to_f16(value); }
};

template <>
struct Element<DType::kBF16> {
  using Storage = std::uint16_t;
  CLUSTERKV_HD static float load(Storage bits) { return bf16_to_float(bits); }
  CLUSTERKV_HD static Storage store(float value) { return float_to_bf16(value); }
};

/// size_of() as a factor of what is counted with int.
template <DType kDType>
inline constexpr int kElementBytes = static_cast<int>(size_of(kDType));

/// Widens `count` stored elements.
template <DType kDType>
CLUSTERKV_HD inline void load_elements(const std::byte* from, int count, float* to) {
  using Storage = typename Element<kDType>::Storage;
  for (int i = 0; i < count; ++i) {
    Storage bits;  // rows of a caller need not be aligned to their element
    std::memcpy(&bits, from + static_cast<std::size_t>(i) * sizeof(Storage), sizeof(Storage));
    to[i] = Element<kDType>::load(bits);
  }
}

/// Rounds and stores `count` floats.
template <DType kDType>
CLUSTERKV_HD inline void store_elements(const float* from, int count, std::byte* to) {
  using Storage = typename Element<kDType>::Storage;
  for (int i = 0; i < count; ++i) {
    const Storage bits = Element<kDType>::store(from[i]);
    std::memcpy(to + static_cast<std::size_t>(i) * sizeof(Storage), &bits, sizeof(Storage));
  }
}

}  // namespace clusterkv
