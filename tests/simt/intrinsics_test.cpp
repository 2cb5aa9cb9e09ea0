// SPDX-License-Identifier: Apache-2.0
//
// Each instruction of kernels/common/cuda/native.cuh against a scalar model, lane by lane. Layouts are
// those of the PTX ISA, written down here a second time; a device judges both by the suites of the ops.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/common/cuda/device.cuh"
#include "kernels/common/numeric.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::testing {
namespace {

namespace device = clusterkv::CLUSTERKV_DEVICE;

/// Runs `kernel(lane)` in one warp, in order and in random schedules.
template <class Kernel>
void run_warp(const Kernel& kernel, std::size_t shared_bytes = 0) {
  for (const std::uint64_t seed : {0, 1, 2}) {
    ::simt::set_options({.seed = seed, .host_memory = true});
    ::simt::run({{1}, {32}, shared_bytes, nullptr}, [&] { kernel(static_cast<int>(threadIdx.x)); });
    EXPECT_EQ(::simt::take_reports(), std::vector<std::string>{});
  }
}

TEST(Intrinsics, ShufflesMoveWordsBetweenLanes) {
  run_warp([](int lane) {
    EXPECT_EQ(__shfl_sync(~0U, 10 * lane, 7), 70);
    EXPECT_EQ(__shfl_xor_sync(~0U, lane, 5), lane ^ 5);
    EXPECT_EQ(__shfl_up_sync(~0U, lane, 3), lane < 3 ? lane : lane - 3);
    EXPECT_EQ(__shfl_down_sync(~0U, lane, 3), lane > 28 ? lane : lane + 3);
    const unsigned long long wide = 0x100000001ULL * static_cast<unsigned>(lane);
    EXPECT_EQ(__shfl_xor_sync(~0U, wide, 1), 0x100000001ULL * static_cast<unsigned>(lane ^ 1));
  });
}

TEST(Intrinsics, VotesAndMatchesSeeTheLanesOfTheMask) {
  run_warp([](int lane) {
    EXPECT_EQ(__ballot_sync(~0U, lane % 3 == 0), 0x49249249U);
    EXPECT_EQ(__any_sync(~0U, lane == 31), 1);
    EXPECT_EQ(__all_sync(~0U, lane < 31), 0);
    EXPECT_EQ(__match_any_sync(~0U, lane % 4), 0x11111111U << (lane % 4));
    const unsigned half = lane < 16 ? 0xffffU : 0xffff0000U;
    EXPECT_EQ(__match_any_sync(half, 5), half);
    EXPECT_EQ(__ballot_sync(half, 1), half);
  });
}

TEST(Intrinsics, Dp4aAddsProductsOfSignedBytes) {
  run_warp([](int lane) {
    EXPECT_EQ(__dp4a(0x7f80ff01, 0x01020380, lane), lane + 127 - 256 - 3 - 128);
  });
}

TEST(Intrinsics, AtomicsReturnWhatWasThere) {
  int sum = 0;
  unsigned least = 100;
  std::vector<int> seen;
  ::simt::set_options({.host_memory = true});
  ::simt::run({{1}, {64}, 0, nullptr}, [&] {
    seen.push_back(atomicAdd(&sum, 2));
    atomicMin(&least, threadIdx.x + 7);
  });
  std::sort(seen.begin(), seen.end());
  for (int i = 0; i < 64; ++i) EXPECT_EQ(seen[static_cast<std::size_t>(i)], 2 * i);
  EXPECT_EQ(sum, 128);
  EXPECT_EQ(least, 7U);
  EXPECT_EQ(atomicExch(&sum, 5), 128);
  EXPECT_EQ(atomicCAS(&sum, 5, 6), 5);
  EXPECT_EQ(atomicCAS(&sum, 5, 7), 6);
  EXPECT_EQ(atomicMax(&sum, 9), 6);
  EXPECT_EQ(sum, 9);
}

// ------------------------------------------------------------------------------------- matrix

/// A fragment register holds elements (row, column) and (row, column + 1).
std::uint32_t two(const std::vector<std::uint16_t>& matrix, int pitch, int row, int column) {
  const auto at = static_cast<std::size_t>(row * pitch + column);
  return matrix[at] | std::uint32_t{matrix[at + 1]} << 16;
}

std::vector<std::uint16_t> numbers(int count, int first = 0) {
  std::vector<std::uint16_t> result;
  for (int i = 0; i < count; ++i) result.push_back(static_cast<std::uint16_t>(first + i));
  return result;
}

TEST(Intrinsics, LdmatrixGivesLaneFourGPlusTRowGColumnsTwoT) {
  struct Shared {
    alignas(16) std::uint16_t rows[32][8];
  };
  run_warp(
      [](int lane) {
        auto& shared = device::dynamic_shared<Shared>();
        for (int c = 0; c < 8; ++c) {
          shared.rows[lane][c] = static_cast<std::uint16_t>(100 * lane + c);
        }
        ::simt::mark_written(&shared, sizeof shared);
        __syncwarp();
        std::uint32_t plain[4], transposed[4];
        device::ldmatrix_x4(plain, shared.rows[lane]);
        device::ldmatrix_x4_trans(transposed, shared.rows[lane]);
        const int g = lane / 4;
        const int t = lane % 4 * 2;
        for (int m = 0; m < 4; ++m) {
          const auto at = [&](int row, int column) {
            return static_cast<std::uint32_t>(100 * (8 * m + row) + column);
          };
          EXPECT_EQ(plain[m], at(g, t) | at(g, t + 1) << 16);
          EXPECT_EQ(transposed[m], at(t, g) | at(t + 1, g) << 16);
        }
      },
      sizeof(Shared));
}

TEST(Intrinsics, MovmatrixTransposesEightByEight) {
  const auto matrix = numbers(64);
  run_warp([&](int lane) {
    const int g = lane / 4;
    const int t = lane % 4 * 2;
    const std::uint32_t got = device::movmatrix_trans(two(matrix, 8, g, t));
    const auto at = [&](int row, int column) {
      return std::uint32_t{matrix[static_cast<std::size_t>(row * 8 + column)]};
    };
    EXPECT_EQ(got, at(t, g) | at(t + 1, g) << 16);
  });
}

template <class Row, class Encode>
void expect_mma_f32(const Encode& encode) {
  // Small integers: products and sums are exact in any order.
  Random random(4);
  std::vector<int> a(16 * 16), b(16 * 8);
  for (int& x : a) x = random.between(-8, 8);
  for (int& x : b) x = random.between(-8, 8);
  const auto bits = [&](const std::vector<int>& m, int at) {
    return std::uint32_t{encode(static_cast<float>(m[static_cast<std::size_t>(at)]))};
  };
  run_warp([&](int lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    std::uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; ++i) {
      const int at = (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
      fa[i] = bits(a, at) | bits(a, at + 1) << 16;
    }
    for (int i = 0; i < 2; ++i) {
      const int k = 2 * t + 8 * i;
      fb[i] = bits(b, k * 8 + g) | bits(b, (k + 1) * 8 + g) << 16;
    }
    float d[4] = {1, 2, 3, 4};
    device::mma_m16n8k16<Row>(d, fa, fb);
    for (int i = 0; i < 4; ++i) {
      int want = i + 1;
      for (int k = 0; k < 16; ++k) {
        want += a[static_cast<std::size_t>((g + i / 2 * 8) * 16 + k)] *
                b[static_cast<std::size_t>(k * 8 + 2 * t + i % 2)];
      }
      EXPECT_EQ(d[i], static_cast<float>(want));
    }
  });
}

TEST(Intrinsics, MmaOfHalvesMultipliesSixteenBySixteenByEight) {
  expect_mma_f32<device::Half>(float_to_f16);
  expect_mma_f32<device::BFloat16>(float_to_bf16);
}

TEST(Intrinsics, MmaOfBytesMultipliesSixteenByThirtyTwoByEight) {
  Random random(5);
  std::vector<int> a(16 * 32), b(32 * 8);
  for (int& x : a) x = random.between(-127, 127);
  for (int& x : b) x = random.between(-128, 127);
  const auto four = [](const std::vector<int>& m, int at, int step) {
    std::uint32_t word = 0;
    for (int i = 0; i < 4; ++i) {
      const auto byte = static_cast<std::uint8_t>(m[static_cast<std::size_t>(at + i * step)]);
      word |= std::uint32_t{byte} << (8 * i);
    }
    return word;
  };
  run_warp([&](int lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    std::uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; ++i) fa[i] = four(a, (g + i % 2 * 8) * 32 + 4 * t + i / 2 * 16, 1);
    for (int i = 0; i < 2; ++i) fb[i] = four(b, (4 * t + 16 * i) * 8 + g, 8);
    std::int32_t d[4] = {5, 6, 7, 8};
    device::mma_m16n8k32_s8(d, fa, fb);
    for (int i = 0; i < 4; ++i) {
      int want = i + 5;
      for (int k = 0; k < 32; ++k) {
        want += a[static_cast<std::size_t>((g + i / 2 * 8) * 32 + k)] *
                b[static_cast<std::size_t>(k * 8 + 2 * t + i % 2)];
      }
      EXPECT_EQ(d[i], want);
    }
  });
}

// ------------------------------------------------------------------------------------- copies

TEST(Intrinsics, CopiesArriveWithTheirGroupsInAnyMode) {
  struct Shared {
    alignas(16) std::uint32_t words[3][32][4];
  };
  std::vector<std::uint32_t> source(3 * 32 * 4);
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::uint32_t>(i);
  for (const auto mode : {::simt::CopyMode::kLate, ::simt::CopyMode::kEarly}) {
    ::simt::set_options({.copies = mode, .host_memory = true});
    ::simt::run({{1}, {32}, sizeof(Shared), nullptr}, [&] {
      auto& shared = device::dynamic_shared<Shared>();
      const auto lane = static_cast<std::size_t>(threadIdx.x);
      for (std::size_t i = 0; i < 3; ++i) {
        device::cp_async16(shared.words[i][lane], source.data() + (i * 32 + lane) * 4);
        device::cp_async_commit();
      }
      device::cp_async_wait<1>();
      for (std::size_t i = 0; i < 2; ++i) {
        const uint4 words = device::load128(shared.words[i][lane]);
        EXPECT_EQ(words.x, source[(i * 32 + lane) * 4]);
        EXPECT_EQ(words.w, source[(i * 32 + lane) * 4 + 3]);
      }
      device::cp_async_wait<0>();
      EXPECT_EQ(device::load128(shared.words[2][lane]).y, source[(64 + lane) * 4 + 1]);
    });
    EXPECT_EQ(::simt::take_reports(), std::vector<std::string>{});
  }
}

}  // namespace
}  // namespace clusterkv::testing
