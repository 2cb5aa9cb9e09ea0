// SPDX-License-Identifier: Apache-2.0
//
// Sizes that more than one stage depends on. Changing one changes layouts, not answers, unless the
// comment says so.
#pragma once

namespace clusterkv {

/// Clusters of one index block. A block belongs to one segment. Sums over clusters are formed per
/// block, so this changes the last bits of votes.
inline constexpr int kBlockClusters = 64;

/// Rows of a quad: the unit of storage, transfer and residency.
inline constexpr int kQuadRows = 4;

/// Rows of a page of a row store.
inline constexpr int kPageRows = 256;

/// Lanes of a fixed-order sum over head_dim: one AVX-512 register.
inline constexpr int kSumLanes = 16;

/// Largest head_dim; scratch arrays on the stack have this size.
inline constexpr int kMaxHeadDim = 256;

/// Query heads that share one pass over a row. Larger groups take several passes.
inline constexpr int kMaxPassHeads = 8;

}  // namespace clusterkv
