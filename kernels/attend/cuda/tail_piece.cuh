// SPDX-License-Identifier: Apache-2.0
//
// The tail of up to eight query heads over one piece of clusters: what was not selected is estimated
// from value means.
//
// Mapping: a warp takes a block of 64 clusters, a lane two of them for their masses; clusters that
//          a head keeps are compacted by ballot, and their value means added with a lane per
//          element. Order: blocks ascending in a warp, then warps 0 .. 3.
// Bits:    which clusters are kept is decided as on the CPU, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attend/attend.hpp"
#include "kernels/attend/cuda/row_piece.cuh"
#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/common/math.hpp"
#include "kernels/common/numeric.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

template <int kDim>
struct TailShared {
  std::int32_t taken[kAttendWarps][kBlockClusters];  ///< rows of each cluster that were selected
  std::int32_t kept[kAttendWarps][kBlockClusters];   ///< compacted: clusters of the block
  float mass[kAttendWarps][kBlockClusters][kMaxPassHeads];
  float output[kAttendWarps][kMaxPassHeads][DimOf<kDim>::kMost];
  float l[kAttendWarps][kMaxPassHeads];
  float rest[kAttendWarps][kMaxPassHeads];
  std::int32_t num_kept[kAttendWarps];
};

/// kDim: as of RowPiece.
template <int kDim>
class TailPiece {
 public:
  using Shared = TailShared<kDim>;
  static constexpr int kElements = (DimOf<kDim>::kMost + kWarpLanes - 1) / kWarpLanes;

  __device__ TailPiece(const attend::AttendParams& p, Shared& shared, int row, int head)
      : p_(p),
        shared_(shared),
        row_(p.rows[row]),
        scores_(p.scores[row]),
        served_(attend::num_served(p, row)),
        group_(row_.group(p.num_q_heads, p.num_kv_heads)),
        kv_head_(head * served_ / group_),
        member_(head * served_ % group_),
        totals_(p.totals + std::int64_t{row} * p.num_q_heads * p.query_tokens + head * served_),
        ids_(p.lists.clusters_of(row, head)),
        counts_(p.lists.counts_of(row, head)),
        value_dim_(p.index.value_dim),
        chosen_(p.lists.num_clusters[p.lists.list(row, head)]) {}

  /// Heads [first, first + heads) of those served. All threads; leaves sums in shared memory.
  __device__ void run(int piece, int first, int heads) {
    const int step = attend::blocks_per_piece(row_.num_blocks);
    const int last = min(row_.num_blocks, (piece + 1) * step);
    float output[kMaxPassHeads][kElements] = {};
    float l[kMaxPassHeads] = {};
    float rest[kMaxPassHeads] = {};
    int num_kept = 0;
    for (int block = piece * step + warp_id(); block < last; block += kAttendWarps) {
      mark_taken(block);
      const int kept = weigh(block, first, heads, l, rest);
      num_kept += kept;
      __syncwarp();
      add_means(block, kept, output);
      __syncwarp();  // the next block writes the lists again
    }
    for (int g = 0; g < kMaxPassHeads; ++g) {
      for (int i = 0; i < kElements; ++i) {
        const int d = lane_id() + i * kWarpLanes;
        if (d < value_dim_) shared_.output[warp_id()][g][d] = output[g][i];
      }
      const float all = tree_sum_lanes<kWarpLanes>(l[g]);
      const float all_rest = tree_sum_lanes<kWarpLanes>(rest[g]);
      if (lane_id() != 0) continue;
      shared_.l[warp_id()][g] = all;
      shared_.rest[warp_id()][g] = all_rest;
    }
    if (lane_id() == 0) shared_.num_kept[warp_id()] = num_kept;
    __syncthreads();
  }

  /// After run(): sums over the warps.
  __device__ attend::PartialHead partial(int first, int g) const {
    attend::PartialHead head{totals_[first + g].max, 0.0F, 0.0F, 0};
    for (int w = 0; w < kAttendWarps; ++w) {
      head.l = head.l + shared_.l[w][g];
      head.rest = head.rest + shared_.rest[w][g];
      head.kept += shared_.num_kept[w];
    }
    return head;
  }
  __device__ float output(int g, int d) const {
    float sum = 0.0F;
    for (int w = 0; w < kAttendWarps; ++w) sum = sum + shared_.output[w][g][d];
    return sum;
  }

 private:
  /// Rows of each cluster of the block that were selected. Ids are ascending, so they are one run.
  __device__ void mark_taken(int block) {
    std::int32_t* taken = shared_.taken[warp_id()];
    for (int c = lane_id(); c < kBlockClusters; c += kWarpLanes) taken[c] = 0;
    __syncwarp();
    const int first = block * kBlockClusters;
    int low = 0;
    int high = chosen_;
    while (low < high) {
      const int middle = (low + high) / 2;
      ids_[middle] < first ? low = middle + 1 : high = middle;
    }
    for (int i = low + lane_id(); i < chosen_ && ids_[i] < first + kBlockClusters;
         i += kWarpLanes) {
      taken[ids_[i] - first] = counts_[i];
    }
    __syncwarp();
  }

  /// Masses of the block's clusters; returns how many are kept.
  __device__ int weigh(int block, int first, int heads, float (&l)[kMaxPassHeads],
                       float (&rest)[kMaxPassHeads]) {
    const std::int64_t at = std::int64_t{kv_head_} * row_.num_blocks + block;
    const std::uint32_t* offset = p_.index.block_offset(kv_head_, row_.blocks[block]);
    const BlockSums* sums = scores_.blocks + at * group_ + member_;
    int kept = 0;
    for (int c = lane_id(); c < kBlockClusters; c += kWarpLanes) {
      const float* e = scores_.e + (at * group_ + member_) * kBlockClusters + c;
      const auto size = static_cast<int>(offset[c + 1] - offset[c]);
      const int left = size - shared_.taken[warp_id()][c];
      bool keep = false;
      for (int g = 0; g < served_ && left > 0; ++g) {
        const float mass = static_cast<float>(size) * e[g * kBlockClusters] * factor(sums, g);
        keep = keep || attend::is_kept(mass, totals_[g].mass, p_.tail_share);
      }
      const unsigned keepers = __ballot_sync(kAllLanes, keep ? 1 : 0);
      const int place = kept + __popc(keepers & ((1U << lane_id()) - 1U));
      kept += __popc(keepers);
      if (keep) shared_.kept[warp_id()][place] = c;
      for (int g = 0; g < kMaxPassHeads; ++g) {
        const bool counts = g < heads && left > 0;
        const float mass = counts ? static_cast<float>(left) * e[(first + g) * kBlockClusters] *
                                        factor(sums, first + g)
                                  : 0.0F;
        if (keep) {
          l[g] = l[g] + mass;
          shared_.mass[warp_id()][place][g] = mass;
        } else {
          rest[g] = rest[g] + mass;
        }
      }
    }
    return kept;
  }

  __device__ float factor(const BlockSums* sums, int g) const {
    return exp2_fixed(sums[g].max - totals_[g].max);
  }

  __device__ void add_means(int block, int kept, float (&output)[kMaxPassHeads][kElements]) {
    const std::uint32_t physical = row_.blocks[block];
    const std::byte* means = p_.index.block_value_means(kv_head_, physical);
    const std::int64_t entry = p_.index.plane_block(kv_head_, physical) * kBlockClusters;
    for (int k = 0; k < kept; ++k) {
      const int cluster = shared_.kept[warp_id()][k];
      const float scale = p_.index.value_scale[entry + cluster];
      for (int i = 0; i < kElements; ++i) {
        const int d = lane_id() + i * kWarpLanes;
        if (d >= value_dim_) continue;
        const float mean = element(means, cluster * value_dim_ + d, scale);
        for (int g = 0; g < kMaxPassHeads; ++g) {
          output[g][i] = fmaf(shared_.mass[warp_id()][k][g], mean, output[g][i]);
        }
      }
    }
  }

  __device__ float element(const std::byte* means, int at, float scale) const {
    switch (p_.index.dtype) {
      case IndexDType::kInt8:
        return static_cast<float>(reinterpret_cast<const std::int8_t*>(means)[at]) * scale;
      case IndexDType::kBF16:
        return bf16_to_float(reinterpret_cast<const std::uint16_t*>(means)[at]);
      default: return reinterpret_cast<const float*>(means)[at];
    }
  }

  const attend::AttendParams& p_;
  Shared& shared_;
  const SequenceView& row_;
  const RowScores& scores_;
  int served_;
  int group_;
  int kv_head_;
  int member_;
  const HeadTotals* totals_;
  const std::int32_t* ids_;
  const std::int32_t* counts_;
  DimOf<kDim> value_dim_;
  int chosen_;
};

}  // namespace clusterkv::CLUSTERKV_DEVICE
