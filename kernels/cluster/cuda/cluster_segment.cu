// SPDX-License-Identifier: Apache-2.0
//
// cluster_segment (stage 1, cluster). Contract and shapes: cluster/cluster.hpp.
//
// Mapping: one block of threads per segment and KV head does all iterations: assign (assign.cuh),
//          a stable counting sort in shared memory, sums of each cluster in the sorted order.
//          Centroids stay in shared memory, rounded to the rows' dtype.
// Bound:   tensor cores; 134 MFLOP an iteration for 2048 tokens, 256 clusters, head_dim 128.
// Order:   a channel of a cluster is summed over tokens in order by one lane.
#include <cstdint>

#include "kernels/cluster/cuda/assign.cuh"
#include "kernels/cluster/cuda/cluster_ops.hpp"
#include "kernels/cluster/cuda/tuning.hpp"
#include "kernels/cluster/rules.hpp"
#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/dispatch.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

struct SegmentSize {
  static constexpr int kThreads = 512;
  static constexpr int kTokens = kMaxSegmentTokens;
  static constexpr int kClusters = kMaxSegmentClusters;
};
struct WindowSize {
  static constexpr int kThreads = 128;
  static constexpr int kTokens = kMaxWindowTokens;
  static constexpr int kClusters = kMaxWindowClusters;
};

template <class Size, int kHeadDim>
struct SegmentShared {
  ClusterJob job;  ///< here, because keys leave no registers for pointers to it
  uint4 centroids[Size::kClusters * CentroidLayout<kHeadDim>::kChunks];
  float bias[Size::kClusters];
  std::uint16_t labels[Size::kTokens];
  std::uint16_t order[Size::kTokens];
  std::int32_t offset[Size::kClusters + 1];
  std::uint16_t count[Size::kThreads / kWarpLanes][Size::kClusters];  ///< per warp and label
  typename BlockScan<Size::kThreads>::Storage scan;
};

template <class Size, DType kDType, int kHeadDim>
class SegmentClusterer {
 public:
  using Shared = SegmentShared<Size, kHeadDim>;
  using Layout = CentroidLayout<kHeadDim>;
  static constexpr int kThreads = Size::kThreads;
  static constexpr int kWarps = kThreads / kWarpLanes;
  static constexpr int kTiles = kHeadDim <= kTwoTilesHeadDim ? 2 : 1;

  __device__ explicit SegmentClusterer(Shared& shared)
      : job_(shared.job), p_(shared.job.params), shared_(shared) {}

  __device__ void run() {
    start();
    for (int i = 0; i < p_.iterations; ++i) {
      assign();
      sort();
      // Nobody reads the centroids after the last assignment.
      if (i + 1 < p_.iterations) update();
    }
    for (int i = static_cast<int>(threadIdx.x); i < p_.keys.num_tokens; i += kThreads) {
      job_.labels[i] = shared_.labels[i];
      job_.order[i] = shared_.order[i];
    }
    for (int c = static_cast<int>(threadIdx.x); c <= p_.num_clusters; c += kThreads) {
      job_.offset[c] = shared_.offset[c];
    }
  }

 private:
  /// Calls use(cluster, lane) with groups of kUpdateLanes lanes. All lanes take part for every
  /// cluster number below `padded()`, whether it exists or not, so `use` may hold shuffles.
  template <class Use>
  __device__ void for_each_cluster(const Use& use) {
    constexpr int kGroups = kThreads / kUpdateLanes;
    const int group = static_cast<int>(threadIdx.x) / kUpdateLanes;
    for (int first = 0; first < padded(); first += kGroups) {
      use(first + group, static_cast<int>(threadIdx.x) % kUpdateLanes);
    }
  }
  /// Clusters with padding. Read again each time: registers are dear.
  __device__ int padded() const { return (p_.num_clusters + 7) / 8 * 8; }

  using Sums = ChannelSums<kDType, kHeadDim, kUpdateLanes>;

  __device__ void start() {
    if (p_.random_start) draw_starts();
    for_each_cluster([&](int cluster, int lane) {
      Sums sums(lane);
      const bool exists = cluster < p_.num_clusters;
      if (exists) sums.add(key_row(p_.keys, start_token(cluster)));
      store(cluster, sums, exists, lane);
    });
    __syncthreads();
  }

  /// The first tokens of a shuffle, as random_starts() of rules.hpp draws them, in the order array.
  __device__ void draw_starts() {
    const int tokens = p_.keys.num_tokens;
    for (int i = static_cast<int>(threadIdx.x); i < tokens; i += kThreads) {
      shared_.order[i] = static_cast<std::uint16_t>(i);
    }
    __syncthreads();
    std::uint64_t state = p_.start_seed;
    for (int i = 0; i < p_.num_clusters && threadIdx.x == 0; ++i) {
      const int other = i + cluster::draw(state, tokens - i);
      const std::uint16_t token = shared_.order[other];
      shared_.order[other] = shared_.order[i];
      shared_.order[i] = token;
    }
    __syncthreads();
  }

  __device__ int start_token(int cluster) const {
    return p_.random_start ? shared_.order[cluster]
                           : cluster::even_start(cluster, p_.keys.num_tokens, p_.num_clusters);
  }

  /// Rounds a mean to a centroid. Numbers past the last cluster are padding.
  __device__ void store(int cluster, Sums& sums, bool has_mean, int lane) {
    const float bias = finish_mean(sums, p_.metric);
    const bool is_padding = cluster >= p_.num_clusters;
    if (cluster >= padded() || (!has_mean && !is_padding)) return;
    sums.for_each_chunk([&](int chunk, const float(&values)[kChunk]) {
      shared_.centroids[Layout::at(cluster, chunk)] = pack_chunk<kDType>(values);
    });
    if (lane == 0) shared_.bias[cluster] = is_padding ? -kMinusInfinity : bias;
  }

  __device__ void assign() {
    constexpr int kKeys = 16 * kTiles;
#pragma unroll 1
    for (int first = warp_id() * kKeys; first < p_.keys.num_tokens; first += kWarps * kKeys) {
      KeyTiles<kDType, kHeadDim, kTiles> keys;
      keys.load(p_.keys, first);
#pragma unroll 1  // keys fill the registers
      for (int c = 0; c < padded(); c += 8) keys.score(shared_.centroids, shared_.bias, c);
      keys.finish(p_.keys.num_tokens - first, [&](int token, int label) {
        shared_.labels[first + token] = static_cast<std::uint16_t>(label);
      });
    }
    __syncthreads();
  }

  // ----------------------------------------------------------------------------------- sort
  /// Stable counting sort: each warp counts its part of the tokens, then ranks them.
  __device__ void sort() {
    for (int c = lane_id(); c < Size::kClusters; c += kWarpLanes) shared_.count[warp_id()][c] = 0;
    __syncwarp();
    const int part = (p_.keys.num_tokens + kWarps - 1) / kWarps;
    const int begin = warp_id() * part;
    const int end = min(p_.keys.num_tokens, begin + part);
    for_each_group(begin, end, [&](const Group& group) {
      if (!group.is_leader) return;
      shared_.count[warp_id()][group.label] += static_cast<std::uint16_t>(__popc(group.peers));
    });
    __syncthreads();
    find_offsets();
    for_each_group(begin, end, [&](const Group& group) {
      std::uint16_t& count = shared_.count[warp_id()][group.label];
      const int base = count;
      const int rank = __popc(group.peers & ((1U << lane_id()) - 1U));
      const int to = shared_.offset[group.label] + base + rank;
      shared_.order[to] = static_cast<std::uint16_t>(group.token);
      __syncwarp(group.active);  // all have read the counts
      if (group.is_leader) count = static_cast<std::uint16_t>(base + __popc(group.peers));
    });
    __syncthreads();
  }

  /// One lane's token among 32 of a warp; peers are the lanes with the same label.
  struct Group {
    int token;
    int label;
    unsigned active;
    unsigned peers;
    bool is_leader;
  };

  /// use(group) for a warp's tokens, 32 at a time in order.
  template <class Use>
  __device__ void for_each_group(int begin, int end, const Use& use) {
    for (int first = begin; first < end; first += kWarpLanes) {
      const int token = first + lane_id();
      const unsigned active = __ballot_sync(kAllLanes, token < end ? 1 : 0);
      if (token < end) {
        const int label = shared_.labels[token];
        const unsigned peers = __match_any_sync(active, label);
        use(Group{token, label, active, peers, __ffs(static_cast<int>(peers)) - 1 == lane_id()});
      }
      __syncwarp();
    }
  }

  /// Counts of each warp become where its tokens start within their label, and labels get offsets.
  __device__ void find_offsets() {
    static_assert(Size::kClusters < kThreads, "a thread a label, and one for the end");
    const auto label = static_cast<int>(threadIdx.x);
    int count = 0;
    for (int w = 0; w < kWarps && label < Size::kClusters; ++w) {
      const int mine = shared_.count[w][label];
      shared_.count[w][label] = static_cast<std::uint16_t>(count);
      count += mine;
    }
    int total = 0;
    const int before = BlockScan<kThreads>(shared_.scan).exclusive(count, total);
    if (label <= p_.num_clusters) shared_.offset[label] = before;
    __syncthreads();
  }

  __device__ void update() {
    for_each_cluster([&](int cluster, int lane) {
      const bool exists = cluster < p_.num_clusters;
      const int begin = exists ? shared_.offset[cluster] : 0;
      const int end = exists ? shared_.offset[cluster + 1] : 0;
      Sums sums(lane);
      for (int i = begin; i < end; ++i) sums.add(key_row(p_.keys, shared_.order[i]));
      if (end > begin) sums.divide(static_cast<float>(end - begin));
      store(cluster, sums, end > begin, lane);
    });
    __syncthreads();
  }

  const ClusterJob& job_;
  const cluster::SegmentParams& p_;
  Shared& shared_;
};

template <class Size, DType kDType, int kHeadDim>
__global__ __launch_bounds__(Size::kThreads,
                             1) void cluster_segment_kernel(const ClusterJob* jobs) {
  auto& shared = dynamic_shared<SegmentShared<Size, kHeadDim>>();
  if (threadIdx.x == 0) shared.job = jobs[blockIdx.x];
  __syncthreads();
  SegmentClusterer<Size, kDType, kHeadDim>(shared).run();
}

template <class Size, DType kDType, int kHeadDim>
void launch_jobs(const ClusterJob* jobs, int num_jobs, void* stream) {
  launch(cluster_segment_kernel<Size, kDType, kHeadDim>,
         {.grid = {static_cast<unsigned>(num_jobs)},
          .block = {Size::kThreads},
          .shared_bytes = shared_size<SegmentShared<Size, kHeadDim>>(),
          .stream = stream},
         jobs);
}

}  // namespace

void cluster_segments(const ClusterJob* jobs, int num_jobs, const cluster::SegmentParams& like,
                      void* stream) {
  if (num_jobs == 0) return;
  check_limit("num_tokens", like.keys.num_tokens, kMaxSegmentTokens);
  check_limit("num_clusters", like.num_clusters, kMaxSegmentClusters);
  const RowStore& store = like.keys.store;
  const bool is_window =
      like.keys.num_tokens <= kMaxWindowTokens && like.num_clusters <= kMaxWindowClusters;
  dispatch_value<DType::kF16, DType::kBF16>("kv_dtype", store.dtype, [&](auto dtype) {
    dispatch_head_dim(store.head_dim, [&](auto head_dim) {
      if (is_window) {
        launch_jobs<WindowSize, dtype.value, head_dim.value>(jobs, num_jobs, stream);
      } else {
        launch_jobs<SegmentSize, dtype.value, head_dim.value>(jobs, num_jobs, stream);
      }
    });
  });
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
