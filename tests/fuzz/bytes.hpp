// SPDX-License-Identifier: Apache-2.0
//
// Decisions taken from a fuzzer's bytes. When they are used up, all are 0.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace clusterkv::fuzz {

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  [[nodiscard]] bool empty() const { return left_ == 0; }
  std::uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  /// 0 .. most
  int upto(int most) { return byte() % (most + 1); }
  bool one_in(int n) { return byte() % n == n - 1; }
  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[byte() % values.size()];
  }
  std::int32_t number() {
    std::uint32_t number = 0;
    for (int i = 0; i < 4; ++i) number = number << 8 | byte();
    return static_cast<std::int32_t>(number);
  }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

}  // namespace clusterkv::fuzz
