// SPDX-License-Identifier: Apache-2.0
//
// Stage 5 of 5: attend. How a sequence's rows and clusters are cut into pieces. Pieces are reduced
// one by one and merged in order, so a result depends on the sequence's own selection alone: not on
// the batch, the threads, or where rows lie.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.hpp"

namespace clusterkv::attend {

inline constexpr int kRowTile = 64;  ///< rows between two rescalings of a running softmax
inline constexpr int kMaxRowPieces = 16;
inline constexpr int kMaxTailPieces = 32;
inline constexpr int kMaxPieces = kMaxRowPieces + kMaxTailPieces;

/// Rows of a piece on a CPU, at least: it has fewer cores than a device, and begins each piece anew.
inline constexpr int kCpuPieceRows = 256;

/// Rows of a piece: as few as fit into kMaxRowPieces pieces, a multiple of `step`.
CLUSTERKV_HD inline std::int64_t rows_per_piece(std::int64_t num_rows, int step = kRowTile) {
  const std::int64_t all = std::int64_t{step} * kMaxRowPieces;
  return step * ((num_rows + all - 1) / all);
}

CLUSTERKV_HD inline int num_row_pieces(std::int64_t num_rows, int step = kRowTile) {
  if (num_rows == 0) return 0;
  const std::int64_t piece = rows_per_piece(num_rows, step);
  return static_cast<int>((num_rows + piece - 1) / piece);
}

inline constexpr int kMinPieceBlocks = 8;

/// Blocks of a tail piece: as few as fit into kMaxTailPieces, a multiple of 4, at least
/// kMinPieceBlocks.
CLUSTERKV_HD inline int blocks_per_piece(int num_blocks) {
  const int even = (num_blocks + kMaxTailPieces - 1) / kMaxTailPieces;
  const int rounded = (even + 3) / 4 * 4;
  return rounded > kMinPieceBlocks ? rounded : kMinPieceBlocks;
}

CLUSTERKV_HD inline int num_tail_pieces(int num_blocks) {
  const int piece = blocks_per_piece(num_blocks);
  return (num_blocks + piece - 1) / piece;
}

/// What no row of up to `num_blocks` blocks exceeds. The number itself falls where pieces grow: 32 for 256
/// blocks, 22 for 257.
CLUSTERKV_HD inline int max_tail_pieces(int num_blocks) {
  const int pieces = (num_blocks + kMinPieceBlocks - 1) / kMinPieceBlocks;
  return pieces < kMaxTailPieces ? pieces : kMaxTailPieces;
}

/// Whether a cluster's own value mean is read for a head: it holds at least `tail_share` of the
/// mass of all clusters, its selected rows included.
CLUSTERKV_HD inline bool is_kept(float cluster_mass, float all_mass, float tail_share) {
  return cluster_mass >= tail_share * all_mass;
}

}  // namespace clusterkv::attend
