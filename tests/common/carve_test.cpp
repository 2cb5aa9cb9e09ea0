// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/carve.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace clusterkv {
namespace {

struct Cut {
  double* a;
  char* none;
  char* b;
  float* c;
  std::size_t used;
};

Cut cut(std::byte* memory) {
  Carver carver(memory);
  Cut result{};
  result.a = carver.take<double>(9);
  result.none = carver.take<char>(0);
  result.b = carver.take<char>(1);
  result.c = carver.take<float>(16);
  result.used = carver.used();
  return result;
}

TEST(Carver, CountsWithoutMemoryWhatItTakesWithIt) {
  std::vector<std::byte> memory(1024);
  EXPECT_EQ(cut(nullptr).used, cut(memory.data()).used);
  EXPECT_EQ(cut(nullptr).a, nullptr);
  EXPECT_EQ(cut(nullptr).c, nullptr);
}

TEST(Carver, ArraysAreApartAndAligned) {
  alignas(64) std::byte memory[1024];
  const Cut c = cut(memory);
  EXPECT_EQ(reinterpret_cast<std::byte*>(c.a), memory);
  EXPECT_GE(reinterpret_cast<std::byte*>(c.b), memory + 9 * sizeof(double));
  EXPECT_GE(reinterpret_cast<std::byte*>(c.c), reinterpret_cast<std::byte*>(c.b) + 1);
  EXPECT_GE(memory + c.used, reinterpret_cast<std::byte*>(c.c + 16));
  for (const void* p :
       {static_cast<void*>(c.a), static_cast<void*>(c.b), static_cast<void*>(c.c)}) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % 64, 0U);
  }
}

TEST(Size, StaysAtTheLargestInsteadOfWrappingRound) {
  constexpr std::size_t kMost = std::numeric_limits<std::size_t>::max();
  constexpr std::size_t kHalf = std::size_t{1} << 63;
  EXPECT_EQ((Size(6) * 7).get(), 42U);
  EXPECT_EQ((Size(kHalf) * 2).get(), kMost);
  EXPECT_EQ((Size(kMost) * 0).get(), 0U);
  EXPECT_EQ((Size(std::int64_t{1} << 40) * (std::int64_t{1} << 40) * 3).get(), kMost);
  EXPECT_EQ((Size(kMost) + 1).get(), kMost);
  EXPECT_EQ((Size(kMost - 1) + 1).get(), kMost);
  EXPECT_TRUE(Size(kHalf - 1).fits());
  EXPECT_FALSE(Size(kHalf).fits());
}

TEST(Carver, CountsMoreThanThereIsWithoutWrappingRound) {
  Carver carver(nullptr);
  carver.take<char>(5);
  carver.take<double>(std::size_t{1} << 61);
  EXPECT_FALSE(Size(carver.used()).fits());
  carver.take<double>(std::size_t{1} << 62);
  EXPECT_FALSE(Size(carver.used()).fits());
}

}  // namespace
}  // namespace clusterkv
