// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace clusterkv {

/// Cuts one allocation into arrays, each aligned to 64 bytes. With null memory it only counts, so
/// that the size of an allocation and its layout are the same code.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}

  template <class T>
  T* take(std::size_t count) {
    T* result = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return result;
  }

  [[nodiscard]] std::size_t used() const { return used_; }

 private:
  static constexpr std::size_t kAlignment = 64;

  std::byte* memory_;
  std::size_t used_ = 0;
};

}  // namespace clusterkv
