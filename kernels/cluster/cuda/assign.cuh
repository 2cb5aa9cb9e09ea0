// SPDX-License-Identifier: Apache-2.0
//
// Nearest centroid of 16 keys a tile: keys in registers, centroids in shared memory, running maximum.
//
// Mapping: mma with keys on the M axis and centroids on the N axis. The K axis is permuted: lane t
//          of four holds 16-byte chunks t, t + 4, … of a row, so keys come by 16-byte loads and
//          centroids by LDS.128 without a transpose. A dot product is a sum, so the order is free.
#pragma once

#include <cstdint>

#include "kernels/cluster/cluster.hpp"
#include "kernels/cluster/rules.hpp"
#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/common/cuda/rows.cuh"
#include "kernels/common/math.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// Centroids of 16-bit elements as assign reads them, [cluster, chunk], with a bias a cluster.
/// Padding clusters up to a multiple of 8 have bias +inf.
template <int kHeadDim>
struct CentroidLayout {
  static constexpr int kChunks = kHeadDim / kChunk;
  static constexpr int kSteps = (kChunks + 3) / 4;  ///< groups of four chunks, one a lane of four

  /// Where chunk `chunk` of a cluster lies. Rows of a multiple of 128 bytes share all banks; odd ones
  /// are moved by half of that.
  __device__ static int at(int cluster, int chunk) {
    const int moved = kChunks % 8 == 0 ? chunk ^ (4 * (cluster & 1)) : chunk;
    return cluster * kChunks + moved;
  }
};

/// Address of token `token` of a run.
__device__ inline const std::byte* key_row(const cluster::KeyRun& run, std::int64_t token) {
  return run.store.row(run.kv_head, paged_row(run.pages, run.first_row + token));
}

template <DType kDType, int kHeadDim, int kTiles>
class KeyTiles {
 public:
  using Layout = CentroidLayout<kHeadDim>;

  /// Keys first, first + 1, …; those past the run are 0.
  __device__ void load(const cluster::KeyRun& run, int first) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = first + 16 * tile + lane_id() / 4 + 8 * half;
        const bool exists = token < run.num_tokens;
        const std::byte* row = key_row(run, exists ? token : run.num_tokens - 1);
#pragma unroll
        for (int s = 0; s < Layout::kSteps; ++s) {
          const int chunk = 4 * s + lane_id() % 4;
          key_[tile][half][s] = exists && chunk < Layout::kChunks ? load_global128(row + 16 * chunk)
                                                                  : uint4{0, 0, 0, 0};
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        best_[tile][half] = kMinusInfinity;
        label_[tile][half] = 0;
      }
    }
  }

  /// Scores of clusters first .. first + 7 of those given, whose numbers start at `base`.
  __device__ void score(const uint4* centroids, const float* bias, int first, int base = 0) {
    float sum[kTiles][4] = {};
#pragma unroll
    for (int s = 0; s < Layout::kSteps; ++s) {
      const int chunk = 4 * s + lane_id() % 4;
      const uint4 b = chunk < Layout::kChunks
                          ? load128(centroids + Layout::at(first + lane_id() / 4, chunk))
                          : uint4{0, 0, 0, 0};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4& low = key_[tile][0][s];
        const uint4& high = key_[tile][1][s];
        mma_m16n8k16<RowElement<kDType>>(sum[tile], {low.x, high.x, low.y, high.y}, {b.x, b.y});
        mma_m16n8k16<RowElement<kDType>>(sum[tile], {low.z, high.z, low.w, high.w}, {b.z, b.w});
      }
    }
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      const int cluster = first + lane_id() % 4 * 2 + column;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float value = sum[tile][2 * half + column] - bias[cluster];
          if (!cluster::is_better(value, best_[tile][half])) continue;
          best_[tile][half] = value;
          label_[tile][half] = base + cluster;
        }
      }
    }
  }

  /// write(token - first, label) for the run's keys, after all clusters.
  template <class Write>
  __device__ void finish(int count, const Write& write) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float best = best_[tile][half];
        int label = label_[tile][half];
        for (int step = 1; step < 4; step *= 2) {
          const float other = __shfl_xor_sync(kAllLanes, best, step);
          const int other_label = __shfl_xor_sync(kAllLanes, label, step);
          if (cluster::is_better(other, other_label, best, label)) {
            best = other;
            label = other_label;
          }
        }
        const int token = 16 * tile + lane_id() / 4 + 8 * half;
        if (lane_id() % 4 == 0 && token < count) write(token, label);
      }
    }
  }

 private:
  uint4 key_[kTiles][2][Layout::kSteps];
  float best_[kTiles][2];
  int label_[kTiles][2];
};

/// The sum of up to kUpdateLanes lanes' chunks of keys: the numerator of a mean.
template <DType kDType, int kHeadDim, int kLanes>
class ChannelSums {
 public:
  static constexpr int kChunks = kHeadDim / kChunk;
  static constexpr int kMine = (kChunks + kLanes - 1) / kLanes;
  static_assert((kMine & (kMine - 1)) == 0, "halves of a tree");

  __device__ explicit ChannelSums(int lane) : lane_(lane) {}

  __device__ void add(const std::byte* row) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int chunk = lane_ + i * kLanes;
      if (chunk >= kChunks) continue;
      float x[kChunk];
      unpack_chunk<kDType>(load_global128(row + 16 * chunk), x);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) sum_[i][j] = sum_[i][j] + x[j];
    }
  }

  __device__ void divide(float count) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) sum_[i][j] = sum_[i][j] / count;
    }
  }
  __device__ void multiply(float factor) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) sum_[i][j] = sum_[i][j] * factor;
    }
  }

  /// Over all lanes of the cluster; every lane of the warp takes part. A tree over chunks, c and
  /// c + half of them first, whichever lanes hold them.
  [[nodiscard]] __device__ float squared_norm() const {
    float sum[kMine] = {};
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) sum[i] = fmaf(sum_[i][j], sum_[i][j], sum[i]);
    }
#pragma unroll
    for (int half = kMine / 2; half > 0; half /= 2) {
#pragma unroll
      for (int i = 0; i < half; ++i) sum[i] = sum[i] + sum[i + half];
    }
    return tree_sum_lanes<kLanes>(sum[0]);
  }

  /// write(chunk, values) for this lane's chunks.
  template <class Write>
  __device__ void for_each_chunk(const Write& write) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int chunk = lane_ + i * kLanes;
      if (chunk < kChunks) write(chunk, sum_[i]);
    }
  }

 private:
  int lane_;
  float sum_[kMine][kChunk] = {};
};

/// A mean becomes what assign compares with: of length 1 for the cosine. Returns the bias. All lanes
/// of the warp take part.
template <DType kDType, int kHeadDim, int kLanes>
__device__ inline float finish_mean(ChannelSums<kDType, kHeadDim, kLanes>& sums, Metric metric) {
  if (metric == Metric::kCosine) {
    const float norm = sqrtf(sums.squared_norm());
    sums.multiply(1.0F / (norm > cluster::kSmallestNorm ? norm : cluster::kSmallestNorm));
  }
  return metric == Metric::kL2 ? 0.5F * sums.squared_norm() : 0.0F;
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
