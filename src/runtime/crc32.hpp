// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace clusterkv::runtime {

using CrcTables = std::array<std::array<std::uint32_t, 256>, 8>;

/// Table t: what a byte does to the state t bytes later.
constexpr CrcTables make_crc_tables() {
  CrcTables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t state = byte;
    for (int bit = 0; bit < 8; ++bit) {
      state = (state & 1U) != 0 ? 0xedb88320U ^ state >> 1 : state >> 1;
    }
    tables[0][byte] = state;
  }
  for (std::size_t t = 1; t < 8; ++t) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t before = tables[t - 1][byte];
      tables[t][byte] = tables[0][before & 0xff] ^ before >> 8;
    }
  }
  return tables;
}

/// CRC-32 of IEEE 802.3 (polynomial 0xedb88320, reflected), as in zlib. Eight bytes at a time.
class Crc32 {
 public:
  void add(std::span<const std::byte> bytes) noexcept {
    const std::byte* at = bytes.data();
    std::size_t left = bytes.size();
    for (; left >= 8; left -= 8, at += 8) {
      std::uint32_t low = 0;
      std::uint32_t high = 0;
      std::memcpy(&low, at, 4);
      std::memcpy(&high, at + 4, 4);
      low ^= state_;
      state_ = kTables[7][low & 0xff] ^ kTables[6][low >> 8 & 0xff] ^ kTables[5][low >> 16 & 0xff] ^
               kTables[4][low >> 24] ^ kTables[3][high & 0xff] ^ kTables[2][high >> 8 & 0xff] ^
               kTables[1][high >> 16 & 0xff] ^ kTables[0][high >> 24];
    }
    for (; left > 0; --left, ++at) {
      state_ = kTables[0][(state_ ^ static_cast<std::uint32_t>(*at)) & 0xff] ^ state_ >> 8;
    }
  }
  [[nodiscard]] std::uint32_t get() const noexcept { return ~state_; }

 private:
  static constexpr CrcTables kTables = make_crc_tables();

  std::uint32_t state_ = ~std::uint32_t{0};
};

}  // namespace clusterkv::runtime
