// SPDX-License-Identifier: Apache-2.0
//
// recall_quads (stage 4, recall). Contract and shapes: recall/cuda/recall_ops.hpp.
//
// Mapping: one block of threads per KV head, plan rows in order. A row that begins a quad looks it up:
//          a slot is a hit; else its position claims the quad, the lowest position winning. Claims
//          are numbered by a scan and take the slots that the hand finds, 1024 slots a look. With a
//          limit, those past it are marked, and clusters that touch one leave their lists. At the end
//          warps copy quads, 128 KiB in flight a block.
// Bound:   the host link when quads are missing, latency when all are there.
// Hazard:  loads of rows must not be ld.global.nc: the compiler then moves stores between them and
//          leaves few in flight.
#include <cstdint>

#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/common/cuda/rows.cuh"
#include "kernels/common/dispatch.hpp"
#include "kernels/recall/cuda/recall_ops.hpp"
#include "kernels/recall/rules.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

using recall::kNoQuad;
using recall::quad_of;
using recall::QuadCopy;

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpLanes;

/// In a directory word, together with the position of a row that wants the quad. Slots are lower, so
/// atomicMin leaves them; kNoSlot is higher.
constexpr std::uint32_t kClaim = 0x80000000U;
/// In a directory word: the quad is past the limit. No claim is as high.
constexpr std::uint32_t kLeft = 0xfffffffeU;
/// In a list, until it is closed up: a row of a cluster that leaves.
constexpr std::uint32_t kGone = 0xffffffffU;

struct RecallShared {
  BlockScan<kThreads>::Storage scan;
  std::uint32_t quad[kThreads];  ///< claims of one round, in order
  int num_copies;
  int hits;
  int misses;
  int in_place;
  int left_clusters;
  int left_rows;
  int last;  ///< how far the hand came for the last slot of a look
};

class Recaller {
 public:
  __device__ Recaller(const RecallParams& p, RecallShared& shared)
      : p_(p),
        shared_(shared),
        head_(static_cast<int>(blockIdx.x)),
        served_(p.lists.selection_heads / p.num_kv_heads),
        directory_(p.pools.directory + head_ * p.pools.num_quads),
        owner_(p.pools.owner + std::int64_t{head_} * p.pools.num_slots),
        stamp_(p.pools.stamp + std::int64_t{head_} * p.pools.num_slots),
        referenced_(p.pools.referenced + std::int64_t{head_} * p.pools.num_slots),
        copies_(p.copies + std::int64_t{head_} * p.num_rows * served_ * p.lists.capacity),
        hand_(p.pools.hand[head_]),
        plan_number_(*p.plan_number),
        is_full_(p.pools.full_in[head_] == plan_number_) {}

  __device__ void resolve() {
    if (threadIdx.x == 0) {
      shared_.num_copies = shared_.hits = shared_.misses = shared_.in_place = shared_.last = 0;
      shared_.left_clusters = shared_.left_rows = 0;
    }
    __syncthreads();
    for (int row = 0; row < p_.num_rows; ++row) {
      // What attends to everything has no tail.
      const bool is_limited = p_.max_transfers != recall::kNoLimit && p_.rows[row].is_scored();
      if (is_limited) {
        for (int list = 0; list < served_; ++list) forget_stale(row, list);
        __syncthreads();
      }
      for (int list = 0; list < served_; ++list) look_up(row, list);
      __syncthreads();
      const int num_left = is_limited ? mark_left(row) : 0;
      for (int list = 0; list < served_; ++list) give_slots(row, list);
      if (num_left == 0) continue;
      for (int list = 0; list < served_; ++list) leave_out(row, list);
      for (int i = static_cast<int>(threadIdx.x); i < num_left; i += kThreads) {
        directory_[left_quads(row)[-i].quad] = kNoSlot;
      }
      __syncthreads();
    }
    if (threadIdx.x != 0) return;
    p_.pools.hand[head_] = hand_;
    if (is_full_) p_.pools.full_in[head_] = plan_number_;
    p_.counts[head_] = {shared_.hits, shared_.misses, shared_.in_place, shared_.left_clusters,
                        shared_.left_rows};
    if (p_.stats == nullptr) return;
    add(&StepStats::quad_hits, shared_.hits);
    add(&StepStats::quad_misses, shared_.misses);
    add(&StepStats::quads_in_place, shared_.in_place);
    add(&StepStats::copied_bytes,
        shared_.misses * static_cast<std::int64_t>(kQuadRows * p_.stored.row_bytes));
    if (p_.max_transfers == recall::kNoLimit) return;
    add(&StepStats::estimated_clusters, shared_.left_clusters);
    add(&StepStats::estimated_tokens, shared_.left_rows);
  }

  /// A warp moves two pieces of up to 2 KiB at a time: all their loads, then all their stores.
  /// kDim: of keys and values; 0: any two.
  template <int kDim>
  __device__ void copy() const {
    constexpr int kQuadChunks = kQuadRows * 2 * DimOf<kDim>::kMost / kChunk;  // at most
    constexpr int kParts = kQuadChunks > 128 ? 2 : 1;
    constexpr int kPieceRows = kQuadRows / kParts;
    constexpr int kMine = (kQuadChunks / kParts + kWarpLanes - 1) / kWarpLanes;
    const int elements = kDim == 0 ? p_.stored.head_dim + p_.stored.value_dim : 2 * kDim;
    const int row_chunks = elements / kChunk;
    const int piece_chunks = kPieceRows * row_chunks;
    constexpr int kPieces = 2;
    const int count = shared_.num_copies * kParts;
#pragma unroll 1
    for (int first = warp_id() * kPieces; first < count; first += kWarps * kPieces) {
      uint4 chunks[kPieces][kMine];
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int piece = first + i < count ? first + i : first;
        const std::byte* from = p_.stored.far_row(
            head_, copies_[piece / kParts].quad * kQuadRows + piece % kParts * kPieceRows);
#pragma unroll
        for (int j = 0; j < kMine; ++j) {
          const int chunk = lane_id() + j * kWarpLanes;
          if (chunk < piece_chunks) chunks[i][j] = load128(from + chunk_at(chunk, row_chunks));
        }
      }
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        if (first + i >= count) continue;
        const std::size_t row = std::size_t{copies_[(first + i) / kParts].slot} * kQuadRows +
                                static_cast<std::size_t>((first + i) % kParts * kPieceRows);
        std::byte* to = p_.pools.slots + static_cast<std::size_t>(head_) * p_.pools.head_stride +
                        row * p_.stored.row_bytes;
#pragma unroll
        for (int j = 0; j < kMine; ++j) {
          const int chunk = lane_id() + j * kWarpLanes;
          if (chunk < piece_chunks) store128(to + chunk_at(chunk, row_chunks), chunks[i][j]);
        }
      }
    }
  }

 private:
  /// Sums of integers have no order.
  __device__ void add(std::int64_t StepStats::*field, std::int64_t count) const {
    for (int i = 0; i < 2; ++i) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&(p_.stats[i].*field)),
                static_cast<unsigned long long>(count));
    }
  }

  /// Bytes to a chunk of some rows of a store, which may have padding. 32 bits: registers are dear.
  __device__ unsigned chunk_at(int chunk, int row_chunks) const {
    return static_cast<unsigned>(chunk / row_chunks) * static_cast<unsigned>(p_.stored.row_bytes) +
           static_cast<unsigned>(chunk % row_chunks) * 16;
  }

  __device__ int count(int row, int list) const {
    return p_.lists.num_rows[p_.lists.list(row, head_ * served_ + list)];
  }

  /// Quad of entry i of a list, if that is the first of its run and not near; else kNoQuad.
  __device__ std::uint32_t new_quad(int row, int list, int i) const {
    const std::uint32_t* ids = p_.lists.rows_of(row, head_ * served_ + list);
    const std::uint32_t quad = quad_of(ids[i]);
    const bool is_known = p_.stored.is_near(ids[i]) || (i > 0 && quad_of(ids[i - 1]) == quad);
    return is_known ? kNoQuad : quad;
  }

  __device__ std::uint32_t claim(int list, int i) const {
    return kClaim | static_cast<std::uint32_t>(list * p_.lists.capacity + i);
  }

  __device__ void look_up(int row, int list) {
    const int end = count(row, list);
    for (int i = static_cast<int>(threadIdx.x); i < end; i += kThreads) {
      const std::uint32_t quad = new_quad(row, list, i);
      if (quad == kNoQuad) continue;
      const std::uint32_t found = atomicMin(directory_ + quad, claim(list, i));
      if (found >= kClaim) continue;
      const std::uint32_t stamp = atomicExch(stamp_ + found, plan_number_);
      if (stamp == plan_number_) continue;  // another list, or row, of this step brought it
      if (recall::is_retained({quad, stamp, false}, p_.retain_from[row])) {
        referenced_[found] = 1;
        atomicAdd(&shared_.hits, 1);
      } else {
        copies_[atomicAdd(&shared_.num_copies, 1)] = {quad, found};
        atomicAdd(&shared_.misses, 1);
      }
    }
  }

  // ----------------------------------------------------------------------------------- claims
  /// visit(quad, whether this thread's entry claimed it, claims of the threads before, claims of all) for
  /// 1024 entries of a list at a time.
  template <class Visit>
  __device__ void for_each_claim(int row, int list, const Visit& visit) {
    const int end = count(row, list);
    for (int first = 0; first < end; first += kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      const std::uint32_t quad = i < end ? new_quad(row, list, i) : kNoQuad;
      const bool is_mine = quad != kNoQuad && directory_[quad] == claim(list, i);
      int claims = 0;
      const int mine = BlockScan<kThreads>(shared_.scan).exclusive(is_mine ? 1 : 0, claims);
      visit(quad, is_mine, mine, claims);
      __syncthreads();
    }
  }

  // ------------------------------------------------------------------------------------ limit
  /// Slots of quads that are no hit any more are given back: their quads are claimed as the others are.
  __device__ void forget_stale(int row, int list) {
    const int end = count(row, list);
    for (int i = static_cast<int>(threadIdx.x); i < end; i += kThreads) {
      const std::uint32_t quad = new_quad(row, list, i);
      if (quad == kNoQuad) continue;
      // Entries of several lists may name the quad; all of them write the same.
      const std::uint32_t found = atomicMin(directory_ + quad, kNoSlot);
      if (found >= kClaim) continue;
      const std::uint32_t stamp = atomicMax(stamp_ + found, 0U);
      if (stamp == plan_number_ || recall::is_retained({quad, stamp, false}, p_.retain_from[row])) {
        continue;
      }
      atomicExch(stamp_ + found, 0U);
      atomicExch(referenced_ + found, 0U);
      atomicExch(owner_ + found, kNoQuad);
      atomicExch(directory_ + quad, kNoSlot);
    }
  }

  /// Where a row's quads past the limit are listed, downwards: the end of what its copies can take.
  __device__ QuadCopy* left_quads(int row) const {
    return copies_ + std::int64_t{row + 1} * served_ * p_.lists.capacity - 1;
  }

  /// Returns how many claims are past the limit.
  __device__ int mark_left(int row) {
    int wanted = 0;
    for (int list = 0; list < served_; ++list) {
      for_each_claim(row, list, [&](std::uint32_t quad, bool is_mine, int mine, int claims) {
        const int number = wanted + mine;
        if (is_mine && recall::is_left(number, p_.max_transfers)) {
          directory_[quad] = kLeft;
          left_quads(row)[p_.max_transfers - number] = {quad, kNoSlot};
        }
        wanted += claims;
      });
    }
    return max(0, wanted - p_.max_transfers);
  }

  /// Takes clusters out of a list that touch a marked quad.
  __device__ void leave_out(int row, int list) {
    const int head = head_ * served_ + list;
    std::int32_t* ids = p_.lists.clusters_of(row, head);
    std::int32_t* counts = p_.lists.counts_of(row, head);
    std::uint32_t* rows = p_.lists.rows_of(row, head);
    BlockScan<kThreads> scan(shared_.scan);
    const int num_clusters = p_.lists.num_clusters[p_.lists.list(row, head)];
    const int num_rows = count(row, list);
    int begin = 0;  // rows of the clusters before
    int kept = 0;
    for (int first = 0; first < num_clusters; first += kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      const bool is_one = i < num_clusters;
      const std::int32_t id = is_one ? ids[i] : -1;
      const int size = is_one ? counts[i] : 0;
      int size_of_all = 0;
      std::uint32_t* own = rows + begin + scan.exclusive(size, size_of_all);
      bool leaves = false;
      for (int r = 0; r < size; ++r) leaves = leaves || directory_[quad_of(own[r])] == kLeft;
      if (leaves) {
        for (int r = 0; r < size; ++r) own[r] = kGone;
        atomicAdd(&shared_.left_clusters, 1);
        atomicAdd(&shared_.left_rows, size);
      }
      int staying = 0;
      const int rank = scan.exclusive(is_one && !leaves ? 1 : 0, staying);
      if (is_one && !leaves) {
        ids[kept + rank] = id;
        counts[kept + rank] = size;
      }
      begin += size_of_all;
      kept += staying;
      __syncthreads();
    }
    for (int i = kept + static_cast<int>(threadIdx.x); i < num_clusters; i += kThreads) {
      ids[i] = -1;
      counts[i] = 0;
    }
    int kept_rows = 0;
    for (int first = 0; first < num_rows; first += kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      const std::uint32_t id = i < num_rows ? rows[i] : kGone;
      int staying = 0;
      const int rank = scan.exclusive(id != kGone ? 1 : 0, staying);
      if (id != kGone) rows[kept_rows + rank] = id;
      kept_rows += staying;
      __syncthreads();
    }
    __syncthreads();  // an empty list has had no other
    if (threadIdx.x != 0) return;
    p_.lists.num_clusters[p_.lists.list(row, head)] = kept;
    p_.lists.num_rows[p_.lists.list(row, head)] = kept_rows;
  }

  // ----------------------------------------------------------------------------------- slots
  __device__ void give_slots(int row, int list) {
    for_each_claim(row, list, [&](std::uint32_t quad, bool is_mine, int mine, int claims) {
      if (is_mine) shared_.quad[mine] = quad;
      __syncthreads();
      const int given = find_slots(claims);
      if (is_mine && mine >= given) directory_[quad] = kNoSlot;
      if (threadIdx.x == 0) {
        shared_.num_copies += given;
        shared_.misses += given;
        shared_.in_place += claims - given;
      }
    });
  }

  /// Slots for the first of `claims` quads, in the order of the hand; returns for how many.
  __device__ int find_slots(int claims) {
    const int num_slots = p_.pools.num_slots;
    const int window = min(kThreads, num_slots);
    int given = 0;
    int resume = hand_;      // behind the slot last given
    std::int64_t since = 0;  // slots looked at since then
    while (given < claims && !is_full_) {
      const int at = (hand_ + static_cast<int>(threadIdx.x)) % num_slots;
      const bool looks = static_cast<int>(threadIdx.x) < window;
      recall::SlotState slot{owner_[at], stamp_[at], referenced_[at] != 0};
      const bool is_free = recall::take_slot(slot, plan_number_) && looks;
      int found = 0;
      const int rank = BlockScan<kThreads>(shared_.scan).exclusive(is_free ? 1 : 0, found);
      const int taken = min(found, claims - given);
      if (is_free && rank == taken - 1) shared_.last = static_cast<int>(threadIdx.x) + 1;
      __syncthreads();
      const int last = shared_.last;
      const int moved = given + taken == claims ? last : window;
      if (is_free && rank < taken) {
        take(at, given + rank);
      } else if (looks && static_cast<int>(threadIdx.x) < moved) {
        referenced_[at] = slot.referenced ? 1 : 0;
      }
      if (taken > 0) resume = (hand_ + last) % num_slots;
      since = taken > 0 ? window - last : since + window;
      given += taken;
      hand_ = (hand_ + moved) % num_slots;
      if (given < claims && since >= 2 * std::int64_t{num_slots}) {
        is_full_ = true;
        hand_ = resume;
      }
      __syncthreads();  // the next look reads what this one wrote
    }
    return given;
  }

  __device__ void take(int slot, int number) {
    const std::uint32_t quad = shared_.quad[number];
    if (owner_[slot] != kNoQuad) directory_[owner_[slot]] = kNoSlot;
    owner_[slot] = quad;
    stamp_[slot] = plan_number_;
    referenced_[slot] = 0;
    directory_[quad] = static_cast<std::uint32_t>(slot);
    copies_[shared_.num_copies + number] = {quad, static_cast<std::uint32_t>(slot)};
  }

  const RecallParams& p_;
  RecallShared& shared_;
  int head_;
  int served_;
  std::uint32_t* directory_;
  std::uint32_t* owner_;
  std::uint32_t* stamp_;
  std::uint32_t* referenced_;
  QuadCopy* copies_;
  int hand_;
  std::uint32_t plan_number_;
  bool is_full_;
};

template <int kDim>
__global__ __launch_bounds__(kThreads, 1) void recall_quads_kernel(RecallParams p) {
  Recaller recaller(p, dynamic_shared<RecallShared>());
  recaller.resolve();
  __syncthreads();
  recaller.copy<kDim>();
}

}  // namespace

void recall_quads(const RecallParams& p, void* stream) {
  if (p.num_rows == 0) return;
  dispatch_dims(p.stored.head_dim, p.stored.value_dim, [&](auto dim) {
    launch(recall_quads_kernel<dim.value>,
           {.grid = {static_cast<unsigned>(p.num_kv_heads)},
            .block = {kThreads},
            .shared_bytes = shared_size<RecallShared>(),
            .stream = stream},
           p);
  });
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
