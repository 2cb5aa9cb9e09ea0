// SPDX-License-Identifier: Apache-2.0
#include "src/runtime/crc32.hpp"

#include <gtest/gtest.h>

#include <string>

namespace clusterkv::runtime {
namespace {

std::uint32_t crc_of(const std::string& text, std::size_t cut) {
  Crc32 crc;
  const auto bytes = std::as_bytes(std::span<const char>(text));
  crc.add(bytes.first(cut));
  crc.add(bytes.subspan(cut));
  return crc.get();
}

TEST(Crc32, IsThatOfZlibHoweverTheBytesAreCut) {
  const std::string check = "123456789";  // the check value of the CRC's catalogue entry
  const std::string text = "The quick brown fox jumps over the lazy dog";
  for (std::size_t cut = 0; cut <= check.size(); ++cut) {
    EXPECT_EQ(crc_of(check, cut), 0xcbf43926U);
    EXPECT_EQ(crc_of(text, cut * 4), 0x414fa339U);
  }
  EXPECT_EQ(crc_of("", 0), 0U);
}

}  // namespace
}  // namespace clusterkv::runtime
