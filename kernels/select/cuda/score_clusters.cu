// SPDX-License-Identifier: Apache-2.0
//
// score_clusters (stage 3, select). Contract and shapes: select/select.hpp.
//
// Mapping: a warp takes one block of 64 clusters. int8: centroids by cp.async to shared memory, the
//          query as two int8 planes, s8 mma; columns 2h and 2h + 1 are the planes of head h, so that
//          a lane finishes its own (cluster, head) pairs. bf16, f32: 16 lanes a cluster, in the order
//          of dot_fixed().
// Bound:   memory with int8 (D + 16 bytes a cluster).
// Bits:    those of the CPU: integer sums, then the formulas of rules.hpp, compiled without
//          contraction.
#include <cstdint>

#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/numeric.hpp"
#include "kernels/select/cuda/select_ops.hpp"
#include "kernels/select/rules.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

using select::ScoreParams;

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpLanes;
constexpr int kTile = 16;  ///< clusters of one mma
constexpr int kTiles = kBlockClusters / kTile;
constexpr int kColumnHeads = 4;  ///< heads of 8 mma columns

template <IndexDType kIndex, int kHeadDim>
struct ScoreShared {
  static constexpr bool kIsInt8 = kIndex == IndexDType::kInt8;
  /// int8: the warp's centroids, 16-byte chunks swizzled. Otherwise its scores z [cluster][head].
  alignas(16) std::int8_t centroids[kWarps][kIsInt8 ? kBlockClusters * kHeadDim : 16];
  alignas(16) std::int8_t planes[2 * kMaxPassHeads][kIsInt8 ? kHeadDim : 16];
  float z[kWarps][kIsInt8 ? 1 : kBlockClusters][kMaxPassHeads];
  float query[kMaxPassHeads][kHeadDim];
  float factor[kMaxPassHeads];
  float query_spread[kWarps][kMaxPassHeads];
};

/// Eight rows of 128 bytes share all banks; odd rows are moved by half a row.
template <int kHeadDim>
__device__ int centroid_chunk(int row, int chunk) {
  return kHeadDim % 128 == 0 ? chunk ^ (4 * (row & 1)) : chunk;
}

template <IndexDType kIndex, int kHeadDim, int kColumns, IntegerMath kMath>
class Scorer {
 public:
  using Shared = ScoreShared<kIndex, kHeadDim>;
  static constexpr bool kIsInt8 = Shared::kIsInt8;
  static constexpr int kChunks = kHeadDim / 16;     ///< 16-byte chunks of an int8 row
  static constexpr int kSteps = (kChunks + 3) / 4;  ///< groups of four chunks, one a lane of four
  static constexpr int kHeads = kColumns * kColumnHeads;

  __device__ Scorer(const ScoreParams& p, Shared& shared, int first_head)
      : p_(p),
        shared_(shared),
        row_(p.rows[blockIdx.z]),
        out_(p.scores[blockIdx.z]),
        kv_head_(static_cast<int>(blockIdx.y)),
        group_(row_.group(p.num_q_heads, p.num_kv_heads)),
        first_head_(first_head),
        heads_(min(kHeads, group_ - first_head)) {}

  __device__ void run() {
    const int stride = static_cast<int>(gridDim.x) * kWarps;
    const int first = static_cast<int>(blockIdx.x) * kWarps + warp_id();
    // The centroids fly while the query is prepared.
    if (kIsInt8 && first < row_.num_blocks) fetch(first);
    load_query();
    __syncthreads();
    if constexpr (kIsInt8 && kMath == IntegerMath::kMma) load_fragments();
    for (int block = first; block < row_.num_blocks; block += stride) score_block(block, stride);
  }

 private:
  // --------------------------------------------------------------------------------- query
  __device__ void load_query() {
    for (int head = warp_id(); head < kHeads; head += kWarps) {
      const bool exists = head < heads_;
      const std::int64_t at =
          std::int64_t{row_.query_row} * p_.num_q_heads + kv_head_ * group_ + first_head_ + head;
      float max_abs = 0.0F;
      for (int d = lane_id(); d < kHeadDim; d += kWarpLanes) {
        const float q = exists ? p_.query[at * kHeadDim + d] : 0.0F;
        shared_.query[head][d] = q;
        const float magnitude = fabsf(q);
        max_abs = magnitude > max_abs ? magnitude : max_abs;
      }
      float factor = p_.softmax_scale * kLog2E;
      if constexpr (kIsInt8) {
        max_abs = max_lanes(max_abs);
        const bool usable = max_abs > 0.0F && max_abs <= 3.4e38F;
        quantise(head, usable ? select::kQueryMax / max_abs : 0.0F);
        factor = factor * (usable ? max_abs / select::kQueryMax : 0.0F);
      }
      if (lane_id() == 0) shared_.factor[head] = factor;
    }
  }

  __device__ void quantise(int head, float inverse) {
    for (int d = lane_id(); d < kHeadDim; d += kWarpLanes) {
      const int q16 = select::quantise_query(shared_.query[head][d], inverse);
      const auto low = static_cast<std::int8_t>(q16 & 0xff);
      shared_.planes[2 * head][d] = static_cast<std::int8_t>((q16 - low) / 256);
      shared_.planes[2 * head + 1][d] = low;
    }
  }

  /// Lane (g, t) of mma column g holds chunk t of each group of four, four words each.
  __device__ void load_fragments() {
    const int g = lane_id() / 4;
    const int t = lane_id() % 4;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int chunk = 4 * s + t;
        fragment_[c][s] =
            chunk < kChunks ? load128(&shared_.planes[8 * c + g][16 * chunk]) : uint4{0, 0, 0, 0};
      }
    }
  }

  // ------------------------------------------------------------------------------ one block
  __device__ void fetch(int block) {
    const std::byte* from = p_.index.block_centroids(kv_head_, row_.blocks[block]);
    std::int8_t* to = shared_.centroids[warp_id()];
    for (int i = lane_id(); i < kBlockClusters * kChunks; i += kWarpLanes) {
      const int cluster = i / kChunks;
      const int chunk = centroid_chunk<kHeadDim>(cluster, i % kChunks);
      cp_async16(to + cluster * kHeadDim + chunk * 16, from + std::int64_t{i} * 16);
    }
    cp_async_commit();
  }

  __device__ void score_block(int block, int stride) {
    const std::uint32_t physical = row_.blocks[block];
    find_segment(block);
    load_sizes(physical);
    float z[kColumns][2 * kTiles];
    if constexpr (kIsInt8) {
      cp_async_wait<0>();
      __syncwarp();
      if constexpr (kMath == IntegerMath::kMma) {
        multiply(z);
      } else {
        multiply_dp4a(z);
      }
      __syncwarp();  // all lanes have read the centroids
      if (block + stride < row_.num_blocks) fetch(block + stride);
      scale(physical, z);
    } else {
      dot_products(physical);
      __syncwarp();
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
          z[c][i] = shared_.z[warp_id()][cluster_of(i)][kColumnHeads * c + lane_id() % 4];
        }
      }
      __syncwarp();  // the next block writes them again
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) finish(block, physical, c, z[c]);
  }

  /// Cluster of a lane's i-th value: rows g and g + 8 of each tile.
  __device__ static int cluster_of(int i) {
    return i / 2 * kTile + lane_id() / 4 + i % 2 * 8;
  }

  __device__ void load_sizes(std::uint32_t physical) {
    const std::uint32_t* offset = p_.index.block_offset(kv_head_, physical);
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const int cluster = cluster_of(i);
      size_[i] = static_cast<std::int32_t>(offset[cluster + 1] - offset[cluster]);
    }
  }

  /// Integer dot products with both planes; exact, in any order.
  __device__ void multiply(float (&z)[kColumns][2 * kTiles]) {
    const std::int8_t* centroids = shared_.centroids[warp_id()];
    const int g = lane_id() / 4;
    const int t = lane_id() % 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      std::int32_t sum[kColumns][4] = {};
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int chunk = 4 * s + t;
        uint4 rows[2] = {};
#pragma unroll
        for (int half = 0; half < 2 && chunk < kChunks; ++half) {
          const int row = tile * kTile + g + 8 * half;
          rows[half] =
              load128(centroids + row * kHeadDim + 16 * centroid_chunk<kHeadDim>(row, chunk));
        }
        const std::uint32_t first[4] = {rows[0].x, rows[1].x, rows[0].y, rows[1].y};
        const std::uint32_t second[4] = {rows[0].z, rows[1].z, rows[0].w, rows[1].w};
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const uint4& b = fragment_[c][s];
          mma_m16n8k32_s8(sum[c], first, {b.x, b.y});
          mma_m16n8k32_s8(sum[c], second, {b.z, b.w});
        }
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        z[c][2 * tile] = static_cast<float>(sum[c][0] * 256 + sum[c][1]);
        z[c][2 * tile + 1] = static_cast<float>(sum[c][2] * 256 + sum[c][3]);
      }
    }
  }

  /// The same sums, a lane its own clusters and heads.
  __device__ void multiply_dp4a(float (&z)[kColumns][2 * kTiles]) {
    const std::int8_t* centroids = shared_.centroids[warp_id()];
    int high[kColumns][2 * kTiles] = {};
    int low[kColumns][2 * kTiles] = {};
#pragma unroll 1  // unrolled, it spills
    for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const std::int8_t* plane =
            shared_.planes[2 * (kColumnHeads * c + lane_id() % 4)] + 16 * chunk;
        const uint4 high_plane = load128(plane);
        const uint4 low_plane = load128(plane + kHeadDim);
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
          const int row = cluster_of(i);
          const uint4 x =
              load128(centroids + row * kHeadDim + 16 * centroid_chunk<kHeadDim>(row, chunk));
          high[c][i] = dot_bytes(x, high_plane, high[c][i]);
          low[c][i] = dot_bytes(x, low_plane, low[c][i]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        z[c][i] = static_cast<float>(high[c][i] * 256 + low[c][i]);
      }
    }
  }

  __device__ static int dot_bytes(const uint4& a, const uint4& b, int sum) {
    sum = __dp4a(static_cast<int>(a.x), static_cast<int>(b.x), sum);
    sum = __dp4a(static_cast<int>(a.y), static_cast<int>(b.y), sum);
    sum = __dp4a(static_cast<int>(a.z), static_cast<int>(b.z), sum);
    return __dp4a(static_cast<int>(a.w), static_cast<int>(b.w), sum);
  }

  __device__ void scale(std::uint32_t physical, float (&z)[kColumns][2 * kTiles]) {
    const std::int64_t entry = p_.index.plane_block(kv_head_, physical) * kBlockClusters;
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const float scale = p_.index.centroid_scale[entry + cluster_of(i)];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float factor = shared_.factor[kColumnHeads * c + lane_id() % 4];
        z[c][i] = size_[i] > 0 ? z[c][i] * (scale * factor) : 0.0F;
      }
    }
  }

  /// bf16 and f32 centroids: half a warp a cluster, lane i adds up elements i, i + 16, …
  __device__ void dot_products(std::uint32_t physical) {
    constexpr DType kStored = kIndex == IndexDType::kBF16 ? DType::kBF16 : DType::kF32;
    using Storage = typename Element<kStored>::Storage;
    const auto* centroids =
        reinterpret_cast<const Storage*>(p_.index.block_centroids(kv_head_, physical));
    const std::uint32_t* offset = p_.index.block_offset(kv_head_, physical);
    const int i = lane_id() % kSumLanes;
    for (int first = 0; first < kBlockClusters; first += 2) {
      const int cluster = first + lane_id() / kSumLanes;
      float sum[kHeads] = {};
      for (int d = i; d < kHeadDim; d += kSumLanes) {
        const float x = Element<kStored>::load(centroids[cluster * kHeadDim + d]);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) sum[h] = sum[h] + shared_.query[h][d] * x;
      }
      const bool used = offset[cluster + 1] != offset[cluster];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float dot = tree_sum_lanes<kSumLanes>(sum[h]);
        if (i == h) shared_.z[warp_id()][cluster][h] = used ? dot * shared_.factor[h] : 0.0F;
      }
    }
  }

  // -------------------------------------------------------------------------------- spreads
  /// The query's spreads in the segment of a block: 1/2 s^2 sum_d q_d^2 D_d of each head.
  __device__ void find_segment(int block) {
    if (!p_.use_spread) return;
    int low = 0;
    int high = row_.num_segments - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      row_.segments[middle].first_block <= block ? low = middle : high = middle - 1;
    }
    if (low == segment_) return;
    segment_ = low;
    __syncwarp();  // all lanes have used the ones before
    const float* profile = p_.index.record_profile(kv_head_, row_.segments[low].record);
    const int i = lane_id() % kSumLanes;
    for (int first = 0; first < kHeads; first += 2) {
      const int head = first + lane_id() / kSumLanes;
      float sum = 0.0F;
      for (int d = i; d < kHeadDim; d += kSumLanes) {
        const float q = shared_.query[head][d];
        sum = sum + q * q * profile[d];
      }
      const float dot = tree_sum_lanes<kSumLanes>(sum);
      if (i == 0) {
        shared_.query_spread[warp_id()][head] = 0.5F * p_.softmax_scale * p_.softmax_scale * dot;
      }
    }
    __syncwarp();
  }

  // --------------------------------------------------------------------------------- softmax
  __device__ void finish(int block, std::uint32_t physical, int column,
                         const float (&z)[2 * kTiles]) {
    const int head = kColumnHeads * column + lane_id() % 4;
    const std::int64_t entry = p_.index.plane_block(kv_head_, physical) * kBlockClusters;
    float t[2 * kTiles];
    float w[2 * kTiles] = {};
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      t[i] = z[i];
      if (!p_.use_spread) continue;
      const float spread = p_.index.spread[entry + cluster_of(i)];
      w[i] = select::spread_weight(spread, shared_.query_spread[warp_id()][head]);
    }
    if (p_.logit_softcap > 0.0F) {
      const Softcap softcap(p_.logit_softcap);
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) select::cap_score(softcap, t[i], w[i]);
    }
    float max = kMinusInfinity;
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      if (p_.use_spread) t[i] = select::score(t[i], w[i]);
      if (size_[i] > 0 && t[i] > max) max = t[i];
    }
    max = max_lanes(max, 4);
    // Partial i mod 16 of a block's sums is rows g or g + 8 of its tiles, in their order.
    float sum[2] = {};
    float mass[2] = {};
    float max_mass = 0.0F;
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const bool counts = size_[i] > 0 && max > kMinusInfinity;
      t[i] = counts ? exp2_fixed(t[i] - max) : 0.0F;
      sum[i % 2] = sum[i % 2] + t[i];
      const float of_rows = static_cast<float>(size_[i]) * t[i];
      mass[i % 2] = mass[i % 2] + of_rows;
      max_mass = of_rows > max_mass ? of_rows : max_mass;
    }
    const float all = tree_over_rows(sum[0] + sum[1]);
    const float all_mass = tree_over_rows(mass[0] + mass[1]);
    max_mass = max_lanes(max_mass, 4);
    if (head >= heads_) return;
    const std::int64_t at = std::int64_t{kv_head_} * row_.num_blocks + block;
    const int member = first_head_ + head;
    if (lane_id() < 4) out_.blocks[at * group_ + member] = {max, all, all_mass, max_mass};
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const std::int64_t to = (at * group_ + member) * kBlockClusters + cluster_of(i);
      out_.e[to] = t[i];
      if (out_.z != nullptr) out_.z[to] = z[i];
    }
  }

  /// The tree over rows g = lane / 4.
  __device__ static float tree_over_rows(float value) {
    for (int step = 16; step >= 4; step /= 2) {
      value = value + __shfl_xor_sync(kAllLanes, value, step);
    }
    return value;
  }

  const ScoreParams& p_;
  Shared& shared_;
  const SequenceView& row_;
  const RowScores& out_;
  int kv_head_;
  int group_;
  int first_head_;
  int heads_;
  int segment_ = -1;
  std::int32_t size_[2 * kTiles];
  uint4 fragment_[kColumns][kSteps];
};

template <IndexDType kIndex, int kHeadDim, int kColumns, IntegerMath kMath>
__global__ __launch_bounds__(kThreads, 1) void score_clusters_kernel(ScoreParams p,
                                                                     int first_head) {
  const SequenceView& row = p.rows[blockIdx.z];
  if (!row.is_scored() || first_head >= row.group(p.num_q_heads, p.num_kv_heads)) return;
  auto& shared = dynamic_shared<ScoreShared<kIndex, kHeadDim>>();
  Scorer<kIndex, kHeadDim, kColumns, kMath>(p, shared, first_head).run();
}

/// Blocks of threads per plan row and KV head, at most: enough to fill a device at batch 1.
constexpr int kMaxGrid = 128;

template <IndexDType kIndex, int kHeadDim, int kColumns, IntegerMath kMath>
void launch_pass(const ScoreParams& p, const PlanShape& shape, int first_head) {
  const int blocks = (shape.max_blocks + kWarps - 1) / kWarps;
  launch(score_clusters_kernel<kIndex, kHeadDim, kColumns, kMath>,
         {.grid = {static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid),
                   static_cast<unsigned>(p.num_kv_heads), static_cast<unsigned>(shape.num_rows)},
          .block = {kThreads},
          .shared_bytes = shared_size<ScoreShared<kIndex, kHeadDim>>(),
          .stream = shape.stream},
         p, first_head);
}

}  // namespace

void score_clusters(const ScoreParams& p, const PlanShape& shape, IntegerMath math) {
  if (shape.max_blocks == 0 || shape.num_rows == 0) return;
  const int group = p.num_q_heads / p.num_kv_heads * p.query_tokens;
  const auto launch_passes = [&](auto index, auto head_dim, auto chosen) {
    for (int first = 0; first < group; first += kMaxPassHeads) {
      const bool is_narrow = group - first <= kColumnHeads;
      if (index.value == IndexDType::kInt8 && is_narrow) {
        launch_pass<IndexDType::kInt8, head_dim.value, 1, chosen.value>(p, shape, first);
      } else {
        launch_pass<index.value, head_dim.value, 2, chosen.value>(p, shape, first);
      }
    }
  };
  dispatch_value<IndexDType::kInt8, IndexDType::kBF16, IndexDType::kF32>(
      "index_dtype", p.index.dtype, [&](auto index) {
        dispatch_head_dim(p.index.head_dim, [&](auto head_dim) {
          using Dp4a = std::integral_constant<IntegerMath, IntegerMath::kDp4a>;
          using Mma = std::integral_constant<IntegerMath, IntegerMath::kMma>;
          if (index.value == IndexDType::kInt8 && math == IntegerMath::kDp4a) {
            launch_passes(std::integral_constant<IndexDType, IndexDType::kInt8>{}, head_dim,
                          Dp4a{});
          } else {
            launch_passes(index, head_dim, Mma{});
          }
        });
      });
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
