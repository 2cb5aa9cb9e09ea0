// SPDX-License-Identifier: Apache-2.0
//
// Exact attention of up to eight query heads over one piece of rows, wherever they lie.
//
// Mapping: four warps take tiles of 16 rows in turn. A tile comes by cp.async, a whole row a lane
//          group, into swizzled shared memory; S = K Q^T and O^T += V^T P by mma, rows of the tile
//          on the M axis of the first and the K axis of the second. Rows need not be neighbours.
// Order:   a warp's tiles ascending, then warps 0 .. 3: the same bits for any batch and grid.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attend/rules.hpp"
#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/common/cuda/rows.cuh"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/math.hpp"
#include "kernels/common/tuning.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

inline constexpr int kAttendWarps = 4;
inline constexpr int kAttendThreads = kAttendWarps * kWarpLanes;
inline constexpr int kTileRows = 16;
inline constexpr int kStages = 2;

/// Instead of -inf, so that differences of maxima are never NaN.
inline constexpr float kLowestLogit = -1e30F;

struct RowAddress {
  const std::byte* key;
  const std::byte* value;
};

/// For rows of up to kDim elements.
template <int kDim>
struct TileLayout {
  static constexpr int kChunks = kDim / kChunk;
  /// Chunks from row to row: a power of two, so that the swizzle stays inside the row.
  static constexpr int kPitch = kChunks <= 8 ? 8 : (kChunks <= 16 ? 16 : 32);
  static constexpr int kTileChunks = kTileRows * kPitch;
};

template <int kDim>
struct PieceShared {
  static constexpr int kMost = DimOf<kDim>::kMost;
  union {
    uint4 tiles[kAttendWarps][kStages][2][TileLayout<kMost>::kTileChunks];  ///< key, value
    float output[kAttendWarps][kMaxPassHeads][kMost];
  };
  float max[kAttendWarps][kMaxPassHeads];
  float sum[kAttendWarps][kMaxPassHeads];
};

/// What logits are of dot products.
struct LogitRule {
  float scale;  ///< to units of log2
  Softcap softcap;
};

/// `Finder` is callable: RowAddress of row i of the piece's list. kDim: of keys and values; 0: any two,
/// with the registers and shared memory of the largest.
template <DType kDType, int kDim, class Finder>
class RowPiece {
 public:
  using Dim = DimOf<kDim>;
  using Layout = TileLayout<Dim::kMost>;
  using Shared = PieceShared<kDim>;
  using Row = RowElement<kDType>;
  static constexpr int kSteps = Dim::kMost / 16;

  /// `query` [heads, head_dim].
  __device__ RowPiece(Shared& shared, const Finder& finder, const float* query, int heads,
                      const LogitRule& rule, Dim head_dim, Dim value_dim)
      : shared_(shared),
        finder_(finder),
        heads_(heads),
        rule_(rule),
        head_dim_(head_dim),
        value_dim_(value_dim) {
    const int head = lane_id() / 4;
    const int pair = lane_id() % 4;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* q = query + head * head_dim + 16 * s + 8 * half + 2 * pair;
        const bool exists = head < heads && 16 * s < head_dim;
        query_[s][half] = exists ? pack<kDType>(q[0], q[1]) : 0U;
      }
    }
  }

  /// Head g sees rows below seen(g) only. Not called: all rows.
  template <class Seen>
  __device__ void limit(const Seen& seen) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = lane_id() % 4 * 2 + h;
      if (head < heads_) seen_[h] = static_cast<std::int32_t>(seen(head));
    }
  }

  /// Rows [first, last). Leaves the piece's state in shared memory: run() of all warps, then read().
  __device__ void run(std::int64_t first, std::int64_t last) {
    constexpr int kRound = kAttendWarps * kTileRows;
    const std::int64_t begin = first + warp_id() * kTileRows;
    for (int stage = 0; stage + 1 < kStages; ++stage) {
      fetch(begin + stage * kRound, last, stage);
    }
    int stage = 0;
    for (std::int64_t row = begin; row < last; row += kRound) {
      fetch(row + (kStages - 1) * kRound, last, (stage + kStages - 1) % kStages);
      cp_async_wait<kStages - 1>();
      __syncwarp();
      add_tile(stage, static_cast<int>(row), static_cast<int>(last));
      __syncwarp();  // the tile is fetched over next
      stage = (stage + 1) % kStages;
    }
    cp_async_wait<0>();
    __syncthreads();  // outputs take the place of tiles
    write_state();
    __syncthreads();
  }

  /// State of head g after run(), warps in order; o is element d.
  struct State {
    float m;
    float l;
    float o;
  };
  __device__ State read(int head, int d) const {
    float max = kLowestLogit;
    for (int w = 0; w < kAttendWarps; ++w) max = fmaxf(max, shared_.max[w][head]);
    State state{max, 0.0F, 0.0F};
    for (int w = 0; w < kAttendWarps; ++w) {
      const float factor = exp2f(shared_.max[w][head] - max);
      state.l = state.l + shared_.sum[w][head] * factor;
      state.o = state.o + shared_.output[w][head][d] * factor;
    }
    return state;
  }

 private:
  /// Copies of a tile, one cp.async group; rows past the end repeat the last one.
  __device__ void fetch(std::int64_t row, std::int64_t last, int stage) {
    if (row < last) {
      RowAddress mine{};
      if (lane_id() < kTileRows) {
        mine = finder_(row + lane_id() < last ? row + lane_id() : last - 1);
      }
      for (int i = 0; i < kTileRows; ++i) {
        const auto key = __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(mine.key), i);
        const auto value =
            __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(mine.value), i);
        const int key_chunks = head_dim_ / kChunk;
        for (int c = lane_id(); c < key_chunks + value_dim_ / kChunk; c += kWarpLanes) {
          const bool is_key = c < key_chunks;
          const int chunk = is_key ? c : c - key_chunks;
          const auto from = reinterpret_cast<const std::byte*>(is_key ? key : value) + 16 * chunk;
          cp_async16(&tile(stage, is_key ? 0 : 1)[i * Layout::kPitch + swizzled(i, chunk)], from);
        }
      }
    }
    cp_async_commit();
  }

  __device__ uint4* tile(int stage, int part) {
    return shared_.tiles[warp_id()][stage][part];
  }

  __device__ void add_tile(int stage, int first, int last) {
    float logit[4] = {};
    score(stage, logit);
    std::uint32_t weight[2];
    softmax(first, last, logit, weight);
    accumulate(stage, weight);
  }

  /// Rows g, g + 8 by heads 2t, 2t + 1.
  __device__ void score(int stage, float (&logit)[4]) {
    const uint4* keys = tile(stage, 0);
    const int row = lane_id() % 16;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (16 * s >= head_dim_) break;
      std::uint32_t a[4];
      ldmatrix_x4(a, keys + row * Layout::kPitch + swizzled(row, 2 * s + lane_id() / 16));
      mma_m16n8k16<Row>(logit, a, query_[s]);
    }
  }

  /// Logits to weights in the layout of the second product's B operand.
  __device__ void softmax(int first, int last, float (&logit)[4], std::uint32_t (&weight)[2]) {
    const int row = first + lane_id() / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) logit[i] *= rule_.scale;
    if (rule_.softcap.is_on()) {
#pragma unroll
      for (int i = 0; i < 4; ++i) logit[i] = rule_.softcap(logit[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool counts = row + i / 2 * 8 < min(last, seen_[i % 2]);
      logit[i] = counts ? logit[i] : kMinusInfinity;
    }
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float max = fmaxf(logit[h], logit[h + 2]);
      for (int step = 4; step < kWarpLanes; step *= 2) {
        max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, step));
      }
      max = fmaxf(max, max_[h]);
      factor[h] = exp2f(max_[h] - max);
      max_[h] = max;
      logit[h] = exp2f(logit[h] - max);
      logit[h + 2] = exp2f(logit[h + 2] - max);
      sum_[h] = fmaf(sum_[h], factor[h], logit[h] + logit[h + 2]);
    }
    weight[0] = movmatrix_trans(pack<kDType>(logit[0], logit[1]));
    weight[1] = movmatrix_trans(pack<kDType>(logit[2], logit[3]));
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) output_[s][i] *= factor[i % 2];
    }
  }

  /// Dims g, g + 8 of each step by heads 2t, 2t + 1.
  __device__ void accumulate(int stage, const std::uint32_t (&weight)[2]) {
    const uint4* values = tile(stage, 1);
    const int row = lane_id() % 8 + lane_id() / 16 * 8;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (16 * s >= value_dim_) break;
      std::uint32_t a[4];
      ldmatrix_x4_trans(a,
                        values + row * Layout::kPitch + swizzled(row, 2 * s + lane_id() / 8 % 2));
      mma_m16n8k16<Row>(output_[s], a, weight);
    }
  }

  __device__ void write_state() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = sum_[h];
      for (int step = 4; step < kWarpLanes; step *= 2) {
        sum = sum + __shfl_xor_sync(kAllLanes, sum, step);
      }
      const int head = lane_id() % 4 * 2 + h;
      if (lane_id() < 4) {
        shared_.max[warp_id()][head] = max_[h];
        shared_.sum[warp_id()][head] = sum;
      }
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        if (16 * s >= value_dim_) break;
        const int d = 16 * s + lane_id() / 4;
        shared_.output[warp_id()][head][d] = output_[s][h];
        shared_.output[warp_id()][head][d + 8] = output_[s][h + 2];
      }
    }
  }

  Shared& shared_;
  const Finder& finder_;
  int heads_;
  LogitRule rule_;
  Dim head_dim_;
  Dim value_dim_;
  std::int32_t seen_[2] = {0x7fffffff, 0x7fffffff};
  std::uint32_t query_[kSteps][2];
  float max_[2] = {kLowestLogit, kLowestLogit};
  float sum_[2] = {};
  float output_[kSteps][4] = {};
};

}  // namespace clusterkv::CLUSTERKV_DEVICE
