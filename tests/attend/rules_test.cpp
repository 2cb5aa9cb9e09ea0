// SPDX-License-Identifier: Apache-2.0
#include "kernels/attend/rules.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace clusterkv::attend {
namespace {

// Pieces are [i * size, (i + 1) * size): they cover every row once if the last one begins inside
// and ends at or after the end.
void expect_cover(std::int64_t total, std::int64_t size, int pieces, int limit) {
  ASSERT_LE(pieces, limit) << total;
  ASSERT_GE(pieces * size, total) << total;
  ASSERT_TRUE(total == 0 || (pieces - 1) * size < total) << total;
}

TEST(RowPieces, CoverEveryRowOnceWithinTheLimit) {
  for (std::int64_t rows = 0; rows < 70000; ++rows) {
    expect_cover(rows, rows_per_piece(rows), num_row_pieces(rows), kMaxRowPieces);
  }
  for (std::int64_t rows = 1; rows < (std::int64_t{1} << 40); rows = rows * 3 + 1) {
    expect_cover(rows, rows_per_piece(rows), num_row_pieces(rows), kMaxRowPieces);
  }
}

TEST(RowPieces, AreWholeTilesAndAsSmallAsTheLimitAllows) {
  for (std::int64_t rows = 1; rows < 5000; ++rows) {
    const std::int64_t size = rows_per_piece(rows);
    EXPECT_EQ(size % kRowTile, 0);
    EXPECT_GT(rows, (size - kRowTile) * kMaxRowPieces);
  }
  EXPECT_EQ(rows_per_piece(1024), 64);
  EXPECT_EQ(rows_per_piece(1025), 128);
  EXPECT_EQ(num_row_pieces(0), 0);
  EXPECT_EQ(num_row_pieces(1), 1);
  EXPECT_EQ(num_row_pieces(65), 2);
  EXPECT_EQ(rows_per_piece(4096, kCpuPieceRows), 256);
  EXPECT_EQ(rows_per_piece(4097, kCpuPieceRows), 512);
  EXPECT_EQ(num_row_pieces(256, kCpuPieceRows), 1);
  EXPECT_EQ(num_row_pieces(257, kCpuPieceRows), 2);
}

TEST(TailPieces, CoverEveryBlockOnceWithinTheLimit) {
  for (int blocks = 0; blocks < 20000; ++blocks) {
    expect_cover(blocks, blocks_per_piece(blocks), num_tail_pieces(blocks), kMaxTailPieces);
  }
  constexpr int kMost = 1 << 24;  // 2^30 clusters
  expect_cover(kMost, blocks_per_piece(kMost), num_tail_pieces(kMost), kMaxTailPieces);
}

TEST(TailPieces, AreMultiplesOfFourFromEightOn) {
  EXPECT_EQ(blocks_per_piece(1), 8);
  EXPECT_EQ(blocks_per_piece(256), 8);
  EXPECT_EQ(blocks_per_piece(257), 12);
  for (int blocks = 1; blocks < 5000; ++blocks) EXPECT_EQ(blocks_per_piece(blocks) % 4, 0);
  EXPECT_EQ(num_tail_pieces(0), 0);
  EXPECT_EQ(num_tail_pieces(8), 1);
  EXPECT_EQ(num_tail_pieces(9), 2);
}

// A launch is sized for the longest row, and shorter rows may have more pieces.
TEST(TailPieces, AreAtMostTheMaximumOfAnyLongerRow) {
  int most = 0;
  for (int blocks = 0; blocks < 5000; ++blocks) {
    most = std::max(most, num_tail_pieces(blocks));
    EXPECT_GE(max_tail_pieces(blocks), most) << blocks;
  }
  EXPECT_EQ(num_tail_pieces(256), 32);
  EXPECT_EQ(num_tail_pieces(257), 22);
  EXPECT_EQ(max_tail_pieces(8), 1);
  EXPECT_EQ(max_tail_pieces(1 << 24), kMaxTailPieces);
}

TEST(IsKept, FromTheShareOn) {
  EXPECT_TRUE(is_kept(1.0F, 4.0F, 0.25F));
  EXPECT_FALSE(is_kept(0.999F, 4.0F, 0.25F));
  EXPECT_TRUE(is_kept(0.0F, 4.0F, 0.0F));
  EXPECT_FALSE(is_kept(std::numeric_limits<float>::quiet_NaN(), 4.0F, 0.25F));
}

}  // namespace
}  // namespace clusterkv::attend
