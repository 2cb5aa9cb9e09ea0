// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <limits>

namespace clusterkv {

/// A count or a number of bytes that stays at the largest value where it would wrap round, so that
/// sizes are computed first and refused afterwards, in one place.
class Size {
 public:
  template <std::integral T>
  constexpr Size(T value) : value_(static_cast<std::size_t>(value)) {}  ///< \pre value >= 0

  friend constexpr Size operator*(Size a, Size b) {
    return b.value_ != 0 && a.value_ > kMost / b.value_ ? Size(kMost) : Size(a.value_ * b.value_);
  }
  friend constexpr Size operator+(Size a, Size b) {
    return a.value_ > kMost - b.value_ ? Size(kMost) : Size(a.value_ + b.value_);
  }

  [[nodiscard]] constexpr std::size_t get() const { return value_; }

  /// Whether an object of so many bytes can be.
  [[nodiscard]] constexpr bool fits() const { return value_ <= kMost / 2; }

 private:
  static constexpr std::size_t kMost = std::numeric_limits<std::size_t>::max();

  std::size_t value_;
};

/// Cuts one allocation into arrays, each aligned to 64 bytes. With null memory it only counts, so
/// that the size of an allocation and its layout are the same code.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}

  template <class T>
  T* take(Size count) {
    T* result = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_.get());
    const Size bytes = count * sizeof(T) + (kAlignment - 1);
    used_ = used_ + bytes.get() / kAlignment * kAlignment;
    return result;
  }

  /// At the largest value, or near it, if there is no such size: see Size::fits().
  [[nodiscard]] std::size_t used() const { return used_.get(); }

 private:
  static constexpr std::size_t kAlignment = 64;

  std::byte* memory_;
  Size used_ = 0;
};

}  // namespace clusterkv
