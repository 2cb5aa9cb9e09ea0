// SPDX-License-Identifier: Apache-2.0
//
// Products of matrices by the matrix units of a core (AMX): of bf16, 32 rows by 32 columns at a time, and of
// bytes, 16 by 16.
//
// Hazards. GCC's tile loads do not say which memory they read: publish() stands between what writes it
// and them. Tile registers are numbered in the source, as the intrinsics are macros. An engine may keep
// a shape of its own for all its tiles: TileShape gives it back.
#pragma once

#include "kernels/common/cpu/simd.hpp"

#ifdef __AMX_BF16__

namespace clusterkv::simd {
inline namespace CLUSTERKV_ISA {

inline constexpr int kTileRows = 16;
inline constexpr int kTileDepth = 32;  ///< bf16 of a row of the left matrix
inline constexpr int kTileWords = kTileRows * kTileDepth / 2;

/// What was written is read by the tile loads that follow.
CLUSTERKV_SIMD void publish() {
  asm volatile("" : : : "memory");
}

/// What the hardware takes for the shapes of its eight tiles.
struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/// Tiles have these shapes while it lives.
class TileShape {
 public:
  explicit TileShape(const TileShapes& shapes) {
    _tile_storeconfig(&before_);
    publish();
    _tile_loadconfig(&shapes);
  }
  ~TileShape() { _tile_loadconfig(&before_); }  // none: the units are released
  TileShape(const TileShape&) = delete;
  TileShape& operator=(const TileShape&) = delete;

 private:
  TileShapes before_;
};

using Bits = Vector<std::uint32_t, kLanes>;

/// The two bf16 whose sum is x up to 2^-16 of it, each in the upper half of its lane.
struct Halves {
  Bits high, low;
};
CLUSTERKV_SIMD Halves halves_of(const Floats& x) {
  static_assert(kParts == 1);
  const auto rounded = [](const Part& part) {
    return (std::bit_cast<Bits>(part) + 0x8000U) & 0xffff0000U;
  };
  const Bits high = rounded(x.part[0]);
  return {high, rounded(x.part[0] - std::bit_cast<Part>(high))};
}

/// The upper halves of 16 lanes, in order.
CLUSTERKV_SIMD void store_upper(const Bits& lanes, std::uint16_t* to) {
  const auto upper = __builtin_convertvector(lanes >> 16, Vector<std::uint16_t, kLanes>);
  std::memcpy(to, &upper, sizeof upper);
}

/// Column by column, the upper half of `even` and, above it, that of `odd`: a row of the right matrix.
CLUSTERKV_SIMD void store_pairs(const Bits& even, const Bits& odd, std::uint32_t* to) {
  const Bits pairs = even >> 16 | odd;
  std::memcpy(to, &pairs, sizeof pairs);
}

CLUSTERKV_SIMD float sum_of(const Floats& x) {
  return _mm512_reduce_add_ps(x.part[0]);
}
CLUSTERKV_SIMD float largest(const Floats& x) {
  return _mm512_reduce_max_ps(x.part[0]);
}
/// A bit for each lane where x < limit does not hold, as with NaN.
CLUSTERKV_SIMD unsigned lanes_not_below(const Floats& x, const Floats& limit) {
  return _mm512_cmp_ps_mask(x.part[0], limit.part[0], _CMP_NLT_UQ);
}

/// A matrix as its high and low halves; low may be null: there is none.
struct LeftRows {  ///< [32, row_elements]
  const std::uint16_t* high;
  const std::uint16_t* low;
  int row_elements;
};
struct RightColumns {  ///< two times 16 columns, each [depth / 2, 16] pairs
  const std::uint32_t* high[2];
  const std::uint32_t* low[2];
};

// Tiles 0 to 3: sums; 4 and 5: rows; 6 and 7: columns.
CLUSTERKV_SIMD void load_rows(const std::uint16_t* rows, int row_elements) {
  const std::ptrdiff_t row_bytes = std::ptrdiff_t{row_elements} * 2;
  _tile_loadd(4, rows, row_bytes);
  _tile_loadd(5, rows + kTileRows * row_elements, row_bytes);
}
CLUSTERKV_SIMD void load_columns(const std::uint32_t* const (&columns)[2], int word) {
  _tile_loadd(6, columns[0] + word, 64);
  _tile_loadd(7, columns[1] + word, 64);
}
CLUSTERKV_SIMD void add_products() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

/// sums[i][j] = rows 16 i .. of `left` times columns 16 j .. of `right`; low halves are not multiplied with
/// each other. In fp32, two products at a time; what is below the smallest normal number counts as 0.
template <int kDepth>
CLUSTERKV_SIMD void multiply_tiles(const LeftRows& left, const RightColumns& right,
                                   float (*sums)[2][kTileRows][kTileRows]) {
  static_assert(kDepth % kTileDepth == 0);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int step = 0; step < kDepth / kTileDepth; ++step) {
    const int k = step * kTileDepth, word = step * kTileWords;
    if (left.low != nullptr) {
      load_rows(left.low + k, left.row_elements);
      load_columns(right.high, word);
      add_products();
    }
    load_rows(left.high + k, left.row_elements);
    load_columns(right.low, word);
    add_products();
    load_columns(right.high, word);
    add_products();
  }
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[0][1], 64);
  _tile_stored(2, sums[1][0], 64);
  _tile_stored(3, sums[1][1], 64);
}

// ------------------------------------------------------------------------------------ bytes
/// Tiles 0: sums; 2 and 3: 16 rows; 4 to 7: columns, 64 bytes of depth each, the second pair what is left
/// of the depth after 64.
constexpr TileShapes byte_tiles(int depth) {
  TileShapes shapes;
  const int second = depth < 128 ? depth - 64 : 64;
  if (second == 0) return shapes;
  shapes.row_bytes[3] = static_cast<std::uint16_t>(second);
  shapes.rows[5] = static_cast<std::uint8_t>(second / 4);
  return shapes;
}

/// Keeps 16 columns [depth / 4, 16] of four bytes in tiles. kDepth: 64 to 256.
template <int kDepth>
CLUSTERKV_SIMD void load_right_tiles(const std::int8_t (*columns)[64]) {
  publish();
  _tile_loadd(4, columns[0], 64);
  if constexpr (kDepth > 64) _tile_loadd(5, columns[16], 64);
  if constexpr (kDepth > 128) _tile_loadd(6, columns[32], 64);
  if constexpr (kDepth > 192) _tile_loadd(7, columns[48], 64);
}

/// sums = 16 rows [16, kDepth] times the columns that load_right_tiles() keeps: exact.
template <int kDepth>
CLUSTERKV_SIMD void multiply_bytes(const std::byte* rows, std::int32_t (*sums)[kTileRows]) {
  static_assert(kDepth == 64 || kDepth == 128 || kDepth == 256 ||
                (kDepth > 64 && kDepth < 128 && kDepth % 4 == 0));
  _tile_zero(0);
  _tile_loadd(2, rows, kDepth);
  _tile_dpbssd(0, 2, 4);
  if constexpr (kDepth > 64) {
    _tile_loadd(3, rows + 64, kDepth);
    _tile_dpbssd(0, 3, 5);
  }
  if constexpr (kDepth > 128) {
    _tile_loadd(2, rows + 128, kDepth);
    _tile_dpbssd(0, 2, 6);
    _tile_loadd(3, rows + 192, kDepth);
    _tile_dpbssd(0, 3, 7);
  }
  _tile_stored(0, sums[0], 64);
}

/// Columns first .. first + 7 of 16 rows.
CLUSTERKV_SIMD void columns(const std::int32_t (*rows)[kTileRows], int first, IntPart (&to)[8]) {
  __m512i row[8];  // and, above it, the one eight further
  for (int i = 0; i < 8; ++i) {
    const auto* low = reinterpret_cast<const __m256i*>(rows[i] + first);
    const auto* high = reinterpret_cast<const __m256i*>(rows[i + 8] + first);
    row[i] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(low)),
                                _mm256_loadu_si256(high), 1);
  }
  __m512i pair[8];  // of columns, of rows i and i + 1
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    pair[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
  __m512i quad[8];  // columns j and j + 4 of rows 0 to 3, and of 4 to 7
  for (int i = 0; i < 8; i += 4) {
    quad[i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]);
    quad[i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
    quad[i + 2] = _mm512_unpacklo_epi64(pair[i + 1], pair[i + 3]);
    quad[i + 3] = _mm512_unpackhi_epi64(pair[i + 1], pair[i + 3]);
  }
  const __m512i near = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i far = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  for (int j = 0; j < 4; ++j) {
    to[j] = reinterpret_cast<IntPart>(_mm512_permutex2var_epi64(quad[j], near, quad[j + 4]));
    to[j + 4] = reinterpret_cast<IntPart>(_mm512_permutex2var_epi64(quad[j], far, quad[j + 4]));
  }
}

}  // namespace CLUSTERKV_ISA
}  // namespace clusterkv::simd

#endif
