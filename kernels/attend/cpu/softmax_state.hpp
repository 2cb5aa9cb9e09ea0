// SPDX-License-Identifier: Apache-2.0
//
// The running softmax of up to kMaxPassHeads query heads over rows that come in tiles.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/attend/cpu/weighted_sum.hpp"
#include "kernels/attend/rules.hpp"
#include "kernels/common/cpu/simd.hpp"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/math.hpp"
#include "kernels/common/numeric.hpp"

namespace clusterkv::attend::CLUSTERKV_ISA {

/// Rows that are scored and then added. Few: keys and values of a store lie side by side, and while a tile
/// is small its memory is read from one end to the other (docs/performance.md).
inline constexpr int kTileRows = 16;
/// How far ahead rows are brought into the cache.
inline constexpr int kFetchRows = kTileRows / 2;

/// Rows are taken from kStreams places in turn, each read from one end to the other: hardware fetches ahead
/// in every page that is being read, but no further than the page (docs/performance.md).
class RowOrder {
 public:
  /// Of `num_rows` rows; those left over come last, in order.
  explicit RowOrder(std::int64_t num_rows)
      : stride_(num_rows / kStreams), spread_(stride_ * kStreams) {}

  [[nodiscard]] CLUSTERKV_SIMD std::int64_t operator()(std::int64_t i) const {
    return i < spread_ ? i % kStreams * stride_ + i / kStreams : i;
  }

 private:
  static constexpr std::int64_t kStreams = 4;
  std::int64_t stride_;
  std::int64_t spread_;
};

/// Rows of one tile, wherever they lie, and the rows after them that are fetched meanwhile.
struct RowTile {
  int count = 0;
  int seen[kMaxPassHeads];  ///< rows that each head sees, the first ones
  const std::byte* key[kTileRows + kFetchRows];
  const std::byte* value[kTileRows + kFetchRows];

  /// The first of `num_rows` > 0 rows; find(i, key, value) tells where row i lies.
  template <class Find>
  void begin(std::int64_t num_rows, const Find& find) {
    fill(0, 0, num_rows, find);
  }

  /// From the tile before to rows from `first` on, which begin kTileRows later.
  template <class Find>
  void advance(std::int64_t first, std::int64_t num_rows, const Find& find) {
    std::copy(key + kTileRows, key + kTileRows + kFetchRows, key);
    std::copy(value + kTileRows, value + kTileRows + kFetchRows, value);
    fill(kFetchRows, first, num_rows, find);
  }

 private:
  /// Past the end the last row stands again.
  template <class Find>
  void fill(int begin, std::int64_t first, std::int64_t num_rows, const Find& find) {
    const auto end =
        static_cast<int>(std::clamp<std::int64_t>(num_rows - first, begin, kTileRows + kFetchRows));
    for (int i = begin; i < end; ++i) find(first + i, key[i], value[i]);
    for (int i = end; i < kTileRows + kFetchRows; ++i) {
      key[i] = key[i - 1];
      value[i] = value[i - 1];
    }
    count = static_cast<int>(std::clamp<std::int64_t>(num_rows - first, 0, kTileRows));
  }
};

/// Adds state (m2, l2, o2) to (m, l, o). States with l = 0 are empty.
CLUSTERKV_SIMD void add_state(float& m, float& l, float* o, float m2, float l2, const float* o2,
                              int value_dim) {
  if (!(l2 > 0.0F)) return;
  if (!(l > 0.0F)) {
    m = m2;
    l = l2;
    std::copy(o2, o2 + value_dim, o);
    return;
  }
  const float max = m > m2 ? m : m2;
  const float a = exp2_fixed(m - max);
  const float b = exp2_fixed(m2 - max);
  m = max;
  l = l * a + l2 * b;
  for (int d = 0; d < value_dim; ++d) o[d] = o[d] * a + o2[d] * b;
}

/// fn(place, element) for all places of a row that is widened 16 elements at a time.
template <DType kDType, class Dim, class Fn>
CLUSTERKV_SIMD void in_lane_order(Dim dim, const Fn& fn) {
  for (int d = 0; d < dim; d += simd::kLanes) {
#pragma GCC unroll 16  // so that places are known when compiling
    for (int lane = 0; lane < simd::kLanes; ++lane) {
      fn(d + lane, d + simd::lane_element<kDType>(lane));
    }
  }
}

/// The queries of a pass, as products with keys take them.
template <DType kDType, int kHeadDim>
struct Queries {
  Queries(const float* query, int heads) {
    for (int g = 0; g < heads; ++g, query += kHeadDim) {
      in_lane_order<kDType>(FixedDim<kHeadDim>{},
                            [&](int to, int from) { lanes[g][to] = query[from]; });
    }
  }

  alignas(64) float lanes[kMaxPassHeads][kHeadDim];
};

/// m in units of log2; l = sum of 2^(x - m); o = sum of 2^(x - m) v.
template <DType kDType, int kHeadDim, class ValueDim>
class SoftmaxState {
 public:
  /// Logits are `scale` times dot products, in units of log2, then capped.
  SoftmaxState(const Queries<kDType, kHeadDim>& query, int heads, float scale,
               const Softcap& softcap, ValueDim value_dim)
      : query_(query), heads_(heads), scale_(scale), softcap_(softcap), value_dim_(value_dim) {
    std::fill(std::begin(m_), std::end(m_), kMinusInfinity);
    for (int g = 0; g < heads; ++g) std::fill(l_[g], l_[g] + kTileRows, 0.0F);
    for (int g = 0; g < heads; ++g) std::fill(o_[g], o_[g] + value_dim, 0.0F);
  }

  /// What add() would have fetched before the first tile.
  CLUSTERKV_SIMD static void fetch_first(const RowTile& tile, ValueDim value_dim) {
    for (int i = 0; i < kFetchRows; ++i) fetch_row(tile, i, value_dim);
  }

  void add(const RowTile& tile) {
    score(tile);
    if (softcap_.is_on()) cap_logits();
    for (int g = 0; g < heads_; ++g) rescale(g, tile.seen[g]);
    add_values(tile);
  }

  [[nodiscard]] float m(int g) const { return m_[g]; }
  [[nodiscard]] float l(int g) const { return tree_sum<kTileRows>(l_[g]); }
  void copy_o(int g, float* to) const {
    in_lane_order<kDType>(value_dim_, [&](int from, int at) { to[at] = o_[g][from]; });
  }

 private:
  static constexpr int kLineBytes = 64;
  /// Rows and heads whose products are finished at once, and rows whose sums are in registers.
  static constexpr int kRows = 4;
  template <int kGroup>
  static constexpr int kFlight = simd::kParts == 1 || kGroup < 4 ? 4 : 2;

  void score(const RowTile& tile) {
    for (int row = 0; row < tile.count; row += kRows) {
      fetch_rows(tile, kFetchRows + row / 2, kRows / 2, value_dim_);
      const std::byte* const* key = tile.key + row;
      int g = 0;
      for (; g + 4 <= heads_; g += 4) score_heads<4>(key, g, row);
      for (; g + 2 <= heads_; g += 2) score_heads<2>(key, g, row);
      for (; g < heads_; ++g) score_heads<1>(key, g, row);
    }
  }

  template <int kGroup>
  CLUSTERKV_SIMD void score_heads(const std::byte* const* key, int first_head, int row) {
    simd::Part sum[kGroup][kRows];
    for (int r = 0; r < kRows; r += kFlight<kGroup>) multiply(key, first_head, r, sum);
    for (int g = 0; g < kGroup; ++g) {
      const simd::Quad dots = simd::part_sums(sum[g][0], sum[g][1], sum[g][2], sum[g][3]) * scale_;
      std::memcpy(x_[first_head + g] + row, &dots, sizeof dots);
    }
  }

  /// Rows [row, row + kFlight): as many sums in registers as hide the latency of a multiply-add.
  template <int kGroup>
  CLUSTERKV_SIMD void multiply(const std::byte* const* key, int first_head, int row,
                               simd::Part (&sum)[kGroup][kRows]) const {
    constexpr int kCount = kFlight<kGroup>;
    simd::Part lanes[kGroup][kCount] = {};
#pragma GCC unroll 1  // else what several calls load alike is kept on the stack
    for (int d = 0; d < kHeadDim; d += simd::kLanes) {
      simd::Floats wide[kCount];
      for (int r = 0; r < kCount; ++r) {
        wide[r] = simd::load_lanes<kDType>(key[row + r] + d * kElementBytes<kDType>);
      }
      for (int g = 0; g < kGroup; ++g) {
        simd::Floats q = simd::load(query_.lanes[first_head + g] + d);
        simd::pin(q);
        for (int part = 0; part < simd::kParts; ++part) {
          for (int r = 0; r < kCount; ++r) {
            lanes[g][r] = simd::fma(wide[r].part[part], q.part[part], lanes[g][r]);
          }
        }
      }
    }
    for (int g = 0; g < kGroup; ++g) {
      for (int r = 0; r < kCount; ++r) sum[g][row + r] = lanes[g][r];
    }
  }

  /// Whatever stands behind the last row is capped too.
  void cap_logits() {
    for (int g = 0; g < heads_; ++g) {
      const simd::Floats x = simd::load(x_[g]) * simd::broadcast(softcap_.inverse);
      simd::store(simd::broadcast(softcap_.cap) * simd::tanh_fixed(x), x_[g]);
    }
  }

  /// Logits of head g become weights; what was summed before moves to the new maximum.
  void rescale(int g, int count) {
    static_assert(kTileRows == simd::kLanes);
    if (count < kTileRows) std::fill(x_[g] + count, x_[g] + kTileRows, kMinusInfinity);
    // NaN loses every comparison, and so weighs nothing.
    const simd::Floats x = simd::max(simd::load(x_[g]), simd::broadcast(kMinusInfinity));
    const float max = simd::max(x);
    if (max > m_[g]) {
      const simd::Floats factor = simd::broadcast(exp2_fixed(m_[g] - max));
      simd::store(simd::load(l_[g]) * factor, l_[g]);
      for (int d = 0; d < value_dim_; d += simd::kLanes) {
        simd::store(simd::load(o_[g] + d) * factor, o_[g] + d);
      }
      m_[g] = max;
    }
    const simd::Floats p = simd::exp2_fixed(x - simd::broadcast(m_[g]));
    simd::store(p, x_[g]);
    simd::store(simd::load(l_[g]) + p, l_[g]);
  }

  struct Value {
    static constexpr int kBytes = kElementBytes<kDType>;
    static simd::Floats load(const std::byte* from) { return simd::load_lanes<kDType>(from); }
  };

  struct Fetch {
    const RowTile& tile;
    ValueDim value_dim;
    CLUSTERKV_SIMD void operator()(int row, int rows) const {
      fetch_rows(tile, kTileRows + row / 2, (rows + 1) / 2, value_dim);
    }
  };

  void add_values(const RowTile& tile) {
    float* sums[kMaxPassHeads];
    for (int g = 0; g < heads_; ++g) sums[g] = o_[g];
    add_weighted<Value>(value_dim_, tile.value, tile.count, x_, heads_, sums,
                        Fetch{tile, value_dim_});
  }

  /// While a tile is scored and added, as many rows are fetched: half of them in each turn, key and value.
  /// Inlined, as GCC leaves out calls of functions that do nothing but fetch.
  CLUSTERKV_SIMD static void fetch_rows(const RowTile& tile, int first, int rows,
                                        ValueDim value_dim) {
    for (int i = first; i < first + rows; ++i) fetch_row(tile, i, value_dim);
  }
  CLUSTERKV_SIMD static void fetch_row(const RowTile& tile, int i, ValueDim value_dim) {
    constexpr int kKeyBytes = kHeadDim * kElementBytes<kDType>;
    const int value_bytes = value_dim * kElementBytes<kDType>;
    for (int at = 0; at < kKeyBytes; at += kLineBytes) simd::prefetch(tile.key[i] + at);
    for (int at = 0; at < value_bytes; at += kLineBytes) simd::prefetch(tile.value[i] + at);
  }

  const Queries<kDType, kHeadDim>& query_;
  int heads_;
  float scale_;
  Softcap softcap_;
  ValueDim value_dim_;
  float m_[kMaxPassHeads];
  alignas(64) float l_[kMaxPassHeads][kTileRows];
  alignas(64) float o_[kMaxPassHeads][ValueDim::kMost];
  alignas(64) float x_[kMaxPassHeads][kTileRows];
};

}  // namespace clusterkv::attend::CLUSTERKV_ISA
