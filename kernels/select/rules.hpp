// SPDX-License-Identifier: Apache-2.0
//
// Stage 3 of 5: select. Decisions and formulas that both backends share: with an int8 index they
// make scores, votes and choices the same bits everywhere.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/common/host_device.hpp"
#include "kernels/common/math.hpp"
#include "kernels/common/tuning.hpp"

namespace clusterkv::select {

/// Largest magnitude of a quantised query: 127 * 256, so that both int8 planes fit.
inline constexpr float kQueryMax = 32512.0F;

/// A query element as a 16-bit integer, half to even; q16 = 256 * high plane + low plane.
/// `inverse` is kQueryMax / max|q|, or 0 for a query without a finite, positive maximum.
CLUSTERKV_HD inline std::int16_t quantise_query(float q, float inverse) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float x = q * inverse;
  const float low = x > -kQueryMax ? x : -kQueryMax;
  const float clamped = low < kQueryMax ? low : kQueryMax;
  const float rounded = (clamped + kRound) - kRound;
  return static_cast<std::int16_t>(x == x ? rounded : 0.0F);
}

/// w: what the spread of a cluster adds to the mass of its mean key.
/// `query_spread` = 1/2 s^2 sum_d q_d^2 D_d of the segment.
CLUSTERKV_HD inline float spread_weight(float spread, float query_spread) {
  return spread * query_spread;
}

/// t = z + log2(1 + w).
CLUSTERKV_HD inline float score(float z, float w) {
  return z + log2_1p_fixed(w);
}

/// A soft cap f makes f(z) of z, and of w what it leaves of the spread: w max(0, f'^2 + f''), as the mean of
/// e^f(x) over logits x around z is e^f(z) (1 + w (f'^2 + f'')) to second order (docs/decisions/010).
CLUSTERKV_HD inline void cap_score(const Softcap& softcap, float& z, float& w) {
  const float tanh = tanh_fixed(z * softcap.inverse);
  const float slope = 1.0F - tanh * tanh;
  const float factor = slope * (slope - tanh * softcap.bend);
  z = softcap.cap * tanh;
  w = w * (factor > 0.0F ? factor : 0.0F);
}

/// Sums over the clusters of a block: 16 partials by (cluster mod 16), then a tree.
inline constexpr int kBlockPartials = 16;

/// Sums over blocks: 32 partials by (block mod 32), then a tree.
inline constexpr int kCombinePartials = 32;

/// Factor that turns e of a block into the softmax over all clusters of one head.
CLUSTERKV_HD inline float softmax_factor(float block_max, float max, float sum) {
  return sum > 0.0F ? exp2_fixed(block_max - max) / sum : 0.0F;
}

/// Order-preserving key of a vote. Votes are >= 0, so their bits compare as they do; NaN is last.
CLUSTERKV_HD inline std::uint32_t vote_key(float vote) {
  const auto bits = std::bit_cast<std::uint32_t>(vote);
  // Infinity is the highest; NaN and signs lie above it. A mask, so that loops become vectors.
  return bits & (0U - static_cast<std::uint32_t>(bits <= 0x7f800000U));
}

/// Order-preserving key of any score; the zeros are equal, NaN is last.
CLUSTERKV_HD inline std::uint32_t score_key(float z) {
  const auto bits = std::bit_cast<std::uint32_t>(z + 0.0F);  // -0 becomes +0
  const std::uint32_t key = (bits & 0x80000000U) != 0U ? ~bits : bits | 0x80000000U;
  return z == z ? key : 0U;
}

/// The radix passes of the selection: 11, 11 and 10 bits, highest first.
inline constexpr int kPasses = 3;
inline constexpr int kPassBins = 1 << 11;
CLUSTERKV_HD constexpr int pass_bits(int pass) {
  return pass < 2 ? 11 : 10;
}
CLUSTERKV_HD constexpr int pass_shift(int pass) {
  return pass == 0 ? 21 : (pass == 1 ? 10 : 0);
}

/// Rows taken of a cluster when `left` rows of the budget remain: trimmed to its first rows.
CLUSTERKV_HD inline int trim(int size, int left) {
  return size < left ? size : left;
}

/// Whether a sequence attends to everything instead of choosing.
CLUSTERKV_HD inline bool is_dense(std::int64_t length, std::int64_t num_stored, int budget_tokens,
                                  float dense_threshold) {
  return num_stored == 0 || static_cast<double>(length) <= static_cast<double>(dense_threshold) *
                                                               static_cast<double>(budget_tokens);
}

}  // namespace clusterkv::select
