// SPDX-License-Identifier: Apache-2.0
//
// select_clusters, expand_rows (stage 3, select). Contract and shapes: select/select.hpp.
//
// Mapping: one block of threads per plan row, selection head and slice of 4096 clusters, 8
//          consecutive clusters a thread. A cluster of the whole choice is always in its own slice's
//          choice, so each slice hands its choice on as candidates, and the last one chooses among
//          them. Histograms add integers, which have no order.
// Bound:   latency of the passes; e is read once, from L2.
// Bits:    those of the CPU.
#include <cstdint>

#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/select/cuda/select_ops.hpp"
#include "kernels/select/rules.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

using select::SelectParams;

constexpr int kThreads = 512;
constexpr int kItems = kSliceClusters / kThreads;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kSliceBlocks = kSliceClusters / kBlockClusters;

/// Consecutive clusters of one thread. A weight of 0 never counts.
struct Items {
  std::uint32_t key[kItems];
  std::int32_t id[kItems];
  std::int32_t weight[kItems];
};

struct SelectShared {
  std::int32_t histogram[select::kPassBins];
  float factor[kSliceBlocks][kMaxPassHeads];
  float max[kMaxPassHeads];
  float sum[kMaxPassHeads];
  BlockScan<kThreads>::Storage scan;
  int digit;
  int left;
  int is_last;
};

/// Clusters whose key is above `key` are taken whole; those equal to it, by id, until `left` rows
/// are used up.
struct Pivot {
  std::uint32_t key;
  int left;
};

class Chooser {
 public:
  __device__ Chooser(const SelectParams& p, const SelectScratch& scratch, SelectShared& shared)
      : p_(p),
        shared_(shared),
        row_(p.rows[blockIdx.z]),
        head_(static_cast<int>(blockIdx.y)),
        list_(static_cast<int>(blockIdx.z) * p.lists.selection_heads + head_),
        group_(row_.group(p.num_q_heads, p.num_kv_heads)),
        per_query_head_(p.grouping == HeadGrouping::kPerQueryHead),
        kv_head_(per_query_head_ ? head_ / group_ : head_),
        first_member_(per_query_head_ ? head_ % group_ : 0),
        members_(per_query_head_ ? 1 : group_),
        slice_(static_cast<int>(blockIdx.x)),
        slices_(num_slices(row_.num_blocks)),
        scratch_(scratch),
        first_slice_(scratch.first_slice[blockIdx.z] + std::int64_t{head_} * slices_),
        candidate_counts_(scratch.counts + first_slice_) {}

  __device__ void run() {
    const bool attends = row_.query_row >= 0;
    if (!attends || row_.num_blocks == 0) {
      if (slice_ == 0) finish_list(0, 0);
      if (slice_ == 0) write_no_totals();
      return;
    }
    if (slice_ >= slices_) return;
    Items items;
    load(items);
    const auto visit = [&](auto&& use) { use(items); };
    const std::int64_t budget = row_.everything ? row_.num_stored : row_.budget_tokens;
    const int left = static_cast<int>(budget < row_.num_stored ? budget : row_.num_stored);
    const Pivot pivot = find_pivot(left, visit);
    if (slices_ == 1) {
      emit(pivot, visit);
      return;
    }
    keep_candidates(pivot, items);
    if (!arrive_last(scratch_.arrived + list_, slices_, shared_.is_last)) return;
    const auto candidates = [&](auto&& use) { for_each_candidate(use); };
    emit(find_pivot(left, candidates), candidates);
  }

 private:
  // ----------------------------------------------------------------------------------- keys
  __device__ int size_of_cluster(int cluster) const {
    return p_.index.cluster_size(row_, kv_head_, cluster);
  }

  __device__ void load(Items& items) {
    const int first = slice_ * kSliceClusters + static_cast<int>(threadIdx.x) * kItems;
    const bool exists = first < row_.num_blocks * kBlockClusters;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      items.id[i] = first + i;
      items.weight[i] = exists ? size_of_cluster(first + i) : 0;
      items.key[i] = 0;
    }
    if (row_.everything) {
      if (slice_ == 0) write_no_totals();
      return;
    }
    per_query_head_ ? load_scores(items, exists) : load_votes(items, exists);
  }

  __device__ void load_scores(Items& items, bool exists) {
    combine(0, 1);
    const RowScores& scores = p_.scores[blockIdx.z];
    const float* z = scores.z + first_score(items, 0);
#pragma unroll
    for (int i = 0; i < kItems && exists; ++i) items.key[i] = select::score_key(z[i]);
  }

  /// Where the scores of a thread's clusters begin, which are of one block, for a head of the choice.
  __device__ std::int64_t first_score(const Items& items, int head) const {
    static_assert(kBlockClusters % kItems == 0);
    const int block = items.id[0] / kBlockClusters;
    const std::int64_t at = std::int64_t{kv_head_} * row_.num_blocks + block;
    return (at * group_ + first_member_ + head) * kBlockClusters + items.id[0] % kBlockClusters;
  }

  __device__ void load_votes(Items& items, bool exists) {
    const RowScores& scores = p_.scores[blockIdx.z];
    float vote[kItems] = {};
    for (int first = 0; first < members_; first += kMaxPassHeads) {
      const int heads = min(kMaxPassHeads, members_ - first);
      combine(first, heads);
      const float* e = scores.e + first_score(items, first);
      const float* factor = shared_.factor[static_cast<int>(threadIdx.x) * kItems / kBlockClusters];
#pragma unroll
      for (int i = 0; i < kItems && exists; ++i) {
        for (int g = 0; g < heads; ++g) {
          vote[i] = vote[i] + e[g * kBlockClusters + i] * factor[g];
        }
      }
      __syncthreads();  // the factors of the next pass take their place
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) items.key[i] = select::vote_key(vote[i]);
  }

  /// Totals of up to kMaxPassHeads heads over all blocks, a warp a head, and the factors that make
  /// this slice's e a softmax. Partial b mod 32 is a lane's.
  __device__ void combine(int first, int heads) {
    const BlockSums* sums = p_.scores[blockIdx.z].blocks +
                            std::int64_t{kv_head_} * row_.num_blocks * group_ + first_member_ +
                            first;
    static_assert(kMaxPassHeads <= kWarps && select::kCombinePartials == kWarpLanes);
    if (warp_id() < heads) {
      const BlockSums* mine = sums + warp_id();
      float max = kMinusInfinity;
      for (int b = lane_id(); b < row_.num_blocks; b += kWarpLanes) {
        const float other = mine[std::int64_t{b} * group_].max;
        max = other > max ? other : max;
      }
      max = max_lanes(max);
      float sum = 0.0F;
      float mass = 0.0F;
      for (int b = lane_id(); b < row_.num_blocks; b += kWarpLanes) {
        const BlockSums& block = mine[std::int64_t{b} * group_];
        const float factor = exp2_fixed(block.max - max);
        sum = sum + block.sum * factor;
        mass = mass + block.mass_sum * factor;
      }
      sum = tree_sum_lanes<kWarpLanes>(sum);
      mass = tree_sum_lanes<kWarpLanes>(mass);
      if (lane_id() == 0) {
        shared_.max[warp_id()] = max;
        shared_.sum[warp_id()] = sum;
        if (slice_ == 0) *total(first + warp_id()) = {max, mass, sum};
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kSliceBlocks * heads; i += kThreads) {
      const int block = slice_ * kSliceBlocks + i / heads;
      if (block >= row_.num_blocks) continue;
      const int g = i % heads;
      shared_.factor[i / heads][g] = select::softmax_factor(
          sums[std::int64_t{block} * group_ + g].max, shared_.max[g], shared_.sum[g]);
    }
    __syncthreads();
  }

  __device__ HeadTotals* total(int member) {
    return p_.totals + std::int64_t{blockIdx.z} * p_.num_q_heads * p_.query_tokens +
           kv_head_ * group_ + first_member_ + member;
  }

  __device__ void write_no_totals() {
    for (int m = static_cast<int>(threadIdx.x); m < members_; m += kThreads) {
      *total(m) = {kMinusInfinity, 0.0F, 0.0F};
    }
  }

  // ---------------------------------------------------------------------------------- pivot
  /// Digit by digit, from the highest: which digit of the key fills the budget? visit(use) calls
  /// use(items) for all items of this thread, in rounds.
  template <class Visit>
  __device__ Pivot find_pivot(int left, const Visit& visit) {
    std::uint32_t prefix = 0;
    for (int pass = 0; pass < select::kPasses; ++pass) {
      const int shift = select::pass_shift(pass);
      const int bits = select::pass_bits(pass);
      for (int i = static_cast<int>(threadIdx.x); i < select::kPassBins; i += kThreads) {
        shared_.histogram[i] = 0;
      }
      __syncthreads();
      visit([&](const Items& items) {
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          const std::uint32_t key = items.key[i];
          const bool matches = pass == 0 || (key >> (shift + bits)) == (prefix >> (shift + bits));
          if (!matches || items.weight[i] == 0) continue;
          atomicAdd(&shared_.histogram[(key >> shift) & ((1U << bits) - 1)], items.weight[i]);
        }
      });
      __syncthreads();
      find_digit(left, (1 << bits) - 1);
      prefix |= static_cast<std::uint32_t>(shared_.digit) << shift;
      left = shared_.left;
    }
    return {prefix, left};
  }

  /// The highest digit down to which the bins hold `left` rows, or 0; and what is left above it.
  __device__ void find_digit(int left, int top) {
    constexpr int kBins = select::kPassBins / kThreads;
    const int first = top - static_cast<int>(threadIdx.x) * kBins;
    int sum = 0;
    for (int i = 0; i < kBins; ++i) {
      if (first - i >= 0) sum += shared_.histogram[first - i];
    }
    int total = 0;
    int above = BlockScan<kThreads>(shared_.scan).exclusive(sum, total);
    const bool is_here = above < left && above + sum >= left;
    if (is_here) {
      int digit = first;
      while (above + shared_.histogram[digit] < left) above += shared_.histogram[digit--];
      shared_.digit = digit;
      shared_.left = left - above;
    }
    if (threadIdx.x == 0 && (total < left || left == 0)) {
      shared_.digit = left == 0 ? top : 0;
      shared_.left = left == 0 ? 0 : left - (total - shared_.histogram[0]);
    }
    __syncthreads();
  }

  // ------------------------------------------------------------------------------ candidates
  __device__ void keep_candidates(Pivot pivot, const Items& items) {
    BlockScan<kThreads> scan(shared_.scan);
    int total = 0;
    int equal_before = scan.exclusive(weight_at(pivot.key, items), total);
    int kept = 0;
    bool keep[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      keep[i] = taken(pivot, items, i, equal_before) > 0;
      kept += keep[i] ? 1 : 0;
    }
    const std::int64_t first = (first_slice_ + slice_) * kSliceClusters;
    std::int64_t at = first + scan.exclusive(kept, total);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (!keep[i]) continue;
      scratch_.keys[at] = items.key[i];
      scratch_.ids[at++] = items.id[i];
    }
    if (threadIdx.x == 0) candidate_counts_[slice_] = total;
  }

  /// Candidates in the order of ids, in rounds of kItems a thread.
  template <class Use>
  __device__ void for_each_candidate(const Use& use) {
    for (int slice = 0; slice < slices_; ++slice) {
      const int count = candidate_counts_[slice];
      const std::int64_t first = (first_slice_ + slice) * kSliceClusters;
      for (int round = 0; round < count; round += kThreads * kItems) {
        Items items;
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          const int at = round + static_cast<int>(threadIdx.x) * kItems + i;
          const bool exists = at < count;
          items.key[i] = exists ? scratch_.keys[first + at] : 0;
          items.id[i] = exists ? scratch_.ids[first + at] : 0;
          items.weight[i] = exists ? size_of_cluster(items.id[i]) : 0;
        }
        use(items);
      }
    }
  }

  // ----------------------------------------------------------------------------------- emit
  __device__ static int weight_at(std::uint32_t key, const Items& items) {
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) sum += items.key[i] == key ? items.weight[i] : 0;
    return sum;
  }

  /// Rows taken of item i; `equal_before` counts rows of earlier items that have the pivot's key.
  __device__ static int taken(Pivot pivot, const Items& items, int i, int& equal_before) {
    if (items.weight[i] == 0 || items.key[i] < pivot.key) return 0;
    if (items.key[i] > pivot.key) return items.weight[i];
    const int left = pivot.left - equal_before;
    equal_before += items.weight[i];
    return left > 0 ? select::trim(items.weight[i], left) : 0;
  }

  /// Writes the list: clusters by id, how many rows of each, and the rows.
  template <class Visit>
  __device__ void emit(Pivot pivot, const Visit& visit) {
    BlockScan<kThreads> scan(shared_.scan);
    int equal = 0;
    int clusters = 0;
    int rows = 0;
    visit([&](const Items& items) {
      int total = 0;
      int equal_before = equal + scan.exclusive(weight_at(pivot.key, items), total);
      equal += total;
      int take[kItems];
      int my_clusters = 0;
      int my_rows = 0;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        take[i] = taken(pivot, items, i, equal_before);
        my_clusters += take[i] > 0 ? 1 : 0;
        my_rows += take[i];
      }
      int at = clusters + scan.exclusive(my_clusters, total);
      clusters += total;
      int row_at = rows + scan.exclusive(my_rows, total);
      rows += total;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        if (take[i] == 0) continue;
        p_.lists.clusters_of(static_cast<int>(blockIdx.z), head_)[at] = items.id[i];
        p_.lists.counts_of(static_cast<int>(blockIdx.z), head_)[at++] = take[i];
        row_at += write_rows(items.id[i], take[i], row_at);
      }
    });
    finish_list(clusters, rows);
  }

  __device__ int write_rows(int cluster, int count, int at) {
    const std::uint32_t physical = row_.blocks[cluster / kBlockClusters];
    const std::uint32_t first = p_.index.block_offset(kv_head_, physical)[cluster % kBlockClusters];
    std::uint32_t* out = p_.lists.rows_of(static_cast<int>(blockIdx.z), head_) + at;
    for (int r = 0; r < count; ++r) out[r] = paged_row(row_.row_pages, std::int64_t{first} + r);
    return count;
  }

  __device__ void finish_list(int clusters, int rows) {
    const int row = static_cast<int>(blockIdx.z);
    for (int i = clusters + static_cast<int>(threadIdx.x); i < p_.lists.capacity; i += kThreads) {
      p_.lists.clusters_of(row, head_)[i] = -1;
      p_.lists.counts_of(row, head_)[i] = 0;
    }
    if (threadIdx.x != 0) return;
    p_.lists.num_clusters[list_] = clusters;
    p_.lists.num_rows[list_] = rows;
  }

  const SelectParams& p_;
  SelectShared& shared_;
  const SequenceView& row_;
  int head_;
  int list_;
  int group_;
  bool per_query_head_;
  int kv_head_;
  int first_member_;
  int members_;
  int slice_;
  int slices_;
  const SelectScratch& scratch_;
  std::int64_t first_slice_;
  std::int32_t* candidate_counts_;
};

__global__ __launch_bounds__(kThreads, 1) void select_clusters_kernel(SelectParams p,
                                                                      SelectScratch scratch) {
  Chooser(p, scratch, dynamic_shared<SelectShared>()).run();
}

/// One block of threads a list; a thread writes the rows of one cluster.
__global__ __launch_bounds__(kThreads) void expand_rows_kernel(SelectParams p) {
  auto& storage = dynamic_shared<BlockScan<kThreads>::Storage>();
  const int row_number = static_cast<int>(blockIdx.y);
  const int head = static_cast<int>(blockIdx.x);
  const SequenceView& row = p.rows[row_number];
  const int kv_head = head / (p.lists.selection_heads / p.num_kv_heads);
  const std::int32_t* ids = p.lists.clusters_of(row_number, head);
  const std::int32_t* counts = p.lists.counts_of(row_number, head);
  const int chosen = p.lists.num_clusters[p.lists.list(row_number, head)];
  int before = 0;
  for (int first = 0; first < chosen; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const int count = i < chosen ? counts[i] : 0;
    int total = 0;
    const int at = before + BlockScan<kThreads>(storage).exclusive(count, total);
    before += total;
    if (count == 0) continue;
    const std::uint32_t physical = row.blocks[ids[i] / kBlockClusters];
    const std::uint32_t from = p.index.block_offset(kv_head, physical)[ids[i] % kBlockClusters];
    std::uint32_t* out = p.lists.rows_of(row_number, head) + at;
    for (int r = 0; r < count; ++r) out[r] = paged_row(row.row_pages, std::int64_t{from} + r);
  }
}

}  // namespace

void select_clusters(const SelectParams& p, const SelectScratch& scratch, const PlanShape& shape) {
  if (shape.num_rows == 0) return;
  const int slices = num_slices(shape.max_blocks);
  launch(select_clusters_kernel,
         {.grid = {static_cast<unsigned>(slices > 0 ? slices : 1),
                   static_cast<unsigned>(p.lists.selection_heads),
                   static_cast<unsigned>(shape.num_rows)},
          .block = {kThreads},
          .shared_bytes = shared_size<SelectShared>(),
          .stream = shape.stream},
         p, scratch);
}

void expand_rows(const SelectParams& p, const PlanShape& shape) {
  if (shape.num_rows == 0) return;
  launch(expand_rows_kernel,
         {.grid = {static_cast<unsigned>(p.lists.selection_heads),
                   static_cast<unsigned>(shape.num_rows)},
          .block = {kThreads},
          .shared_bytes = shared_size<BlockScan<kThreads>::Storage>(),
          .stream = shape.stream},
         p);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
