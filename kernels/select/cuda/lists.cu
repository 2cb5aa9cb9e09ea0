// SPDX-License-Identifier: Apache-2.0
//
// Selections across the API: queries in, the caller's own choice in, token positions out.
//
// Mapping: a block of threads a row and head, or a list.
// Bound:   latency.
#include <cstdint>

#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/common/cuda/tensor_io.cuh"
#include "kernels/select/cuda/select_ops.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

using select::SelectParams;

constexpr int kThreads = 128;

__global__ __launch_bounds__(kThreads) void load_query_kernel(QueryParams p) {
  const SequenceView& view = p.rows[blockIdx.y];
  const auto token = static_cast<int>(blockIdx.z);
  if (view.query_row < 0 || token >= view.num_query_tokens) return;
  const auto num_q_heads = static_cast<int>(p.query.shape[1]);
  const auto head_dim = static_cast<int>(p.query.shape[2]);
  const auto head = static_cast<int>(blockIdx.x);
  const int heads = num_q_heads / p.num_kv_heads;
  const int place = (head / heads * view.num_query_tokens + token) * heads + head % heads;
  float* to = p.to + (std::int64_t{view.query_row} * num_q_heads + place) * head_dim;
  const std::int64_t from =
      (std::int64_t{view.query_row} + token) * p.query.stride[0] + head * p.query.stride[1];
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += kThreads) {
    to[d] = load_element(p.query, from + d * p.query.stride[2]);
  }
}

__device__ std::int32_t& element(const TensorView& t, std::int64_t row, std::int64_t head,
                                 std::int64_t i) {
  return static_cast<std::int32_t*>(
      t.data)[row * t.stride[0] + head * t.stride[1] + i * t.stride[2]];
}

/// One list. Entries may be those of the plan's own lists: each is read by the thread that writes it, or
/// before a barrier that the writes come after.
__global__ __launch_bounds__(kThreads) void adopt_lists_kernel(SelectParams p, TensorView ids,
                                                               TensorView counts) {
  auto& storage = dynamic_shared<BlockScan<kThreads>::Storage>();
  const int row = static_cast<int>(blockIdx.y);
  const int head = static_cast<int>(blockIdx.x);
  const SequenceView& view = p.rows[row];
  const int kv_head = head / (p.lists.selection_heads / p.num_kv_heads);
  const int capacity = p.lists.capacity;
  const int entries = view.query_row < 0 ? 0 : static_cast<int>(ids.shape[2]);
  int clusters = 0;
  int rows = 0;
  bool open = true;
  for (int first = 0; first < entries && open; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const std::int32_t id = i < entries ? element(ids, row, head, i) : -1;
    const std::int32_t before = i > 0 && i < entries ? element(ids, row, head, i - 1) : -1;
    const std::int32_t count = i < entries ? element(counts, row, head, i) : 0;
    const bool exists = id > before && id < view.num_blocks * kBlockClusters;
    const bool fits = exists && count >= 1 && count <= p.index.cluster_size(view, kv_head, id);
    int total = 0;
    const int faults = BlockScan<kThreads>(storage).exclusive(fits ? 0 : 1, total);
    const bool counted = fits && faults == 0;
    const int rows_before =
        rows + BlockScan<kThreads>(storage).exclusive(counted ? count : 0, total);
    const bool taken = counted && i < capacity && rows_before + count <= capacity;
    int taken_clusters = 0;
    BlockScan<kThreads>(storage).exclusive(taken ? 1 : 0, taken_clusters);
    int taken_rows = 0;
    BlockScan<kThreads>(storage).exclusive(taken ? count : 0, taken_rows);
    if (taken) {
      p.lists.clusters_of(row, head)[i] = id;
      p.lists.counts_of(row, head)[i] = count;
    }
    clusters += taken_clusters;
    rows += taken_rows;
    open = taken_clusters == kThreads;
    __syncthreads();  // the next round's first thread reads what this one's last has beside it
  }
  for (int i = clusters + static_cast<int>(threadIdx.x); i < capacity; i += kThreads) {
    p.lists.clusters_of(row, head)[i] = -1;
    p.lists.counts_of(row, head)[i] = 0;
  }
  if (threadIdx.x != 0) return;
  p.lists.num_clusters[p.lists.list(row, head)] = clusters;
  p.lists.num_rows[p.lists.list(row, head)] = rows;
}

/// One list of tokens.
class TokenList {
 public:
  __device__ TokenList(const TokenLists& p, int row, int head)
      : p_(p),
        view_(p.rows[row]),
        head_(head / (p.lists.selection_heads / p.num_kv_heads)),
        rows_(p.lists.rows_of(row, head)),
        middle_(p.all_rows ? static_cast<int>(view_.num_stored)
                           : p.lists.num_rows[p.lists.list(row, head)]) {}

  [[nodiscard]] __device__ int count() const {
    return view_.num_sinks + middle_ + view_.num_pending;
  }
  [[nodiscard]] __device__ int kv_head() const { return head_; }
  [[nodiscard]] __device__ int token(int i) const {
    const int sinks = view_.num_sinks;
    if (i < sinks || p_.all_rows) return i;
    if (i >= sinks + middle_) return static_cast<int>(view_.num_stored) + i - middle_;
    return static_cast<int>(p_.positions[head_ * p_.positions_stride + rows_[i - sinks]]);
  }

 private:
  const TokenLists& p_;
  const SequenceView& view_;
  int head_;
  const std::uint32_t* rows_;
  int middle_;
};

__global__ __launch_bounds__(kThreads) void write_token_ids_kernel(TokenIdParams p) {
  const int row = static_cast<int>(blockIdx.y);
  const int head = static_cast<int>(blockIdx.x);
  const TokenList list(p.from, row, head);
  const int count = list.count();
  const int capacity = static_cast<int>(p.ids.shape[2]);
  for (int i = static_cast<int>(threadIdx.x); i < capacity; i += kThreads) {
    element(p.ids, row, head, i) = i < count ? list.token(i) : -1;
  }
  if (threadIdx.x != 0) return;
  element(p.counts, row, head, 0) = count < capacity ? count : capacity;
}

/// Entry of a token in the engine's pool; -1 if there is none.
__device__ std::int32_t paged_entry(const PagedParams& p, int row, int token, int kv_head) {
  constexpr int kMost = 0x7fffffff;
  const int column = token / p.block_tokens;
  if (column >= p.block_table.shape[1]) return -1;
  const std::int64_t block = element(p.block_table, row, column, 0);
  const std::int64_t slot = block * p.block_tokens + token % p.block_tokens;
  const int heads = p.from.num_kv_heads;
  if (block < 0 || slot > (kMost - kv_head) / heads) return -1;
  return static_cast<std::int32_t>(slot * heads + kv_head);
}

/// One list. Where it begins is the sum of those before, which each block forms for itself: they are few.
__global__ __launch_bounds__(kThreads) void write_paged_kernel(PagedParams p) {
  __shared__ std::int64_t sums[kThreads];
  const int heads = p.from.lists.selection_heads;
  const int row = static_cast<int>(blockIdx.y);
  const int head = static_cast<int>(blockIdx.x);
  const int number = row * heads + head;
  std::int64_t sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < number; i += kThreads) {
    sum += TokenList(p.from, i / heads, i % heads).count();
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  std::int64_t first = 0;
  for (const std::int64_t of_thread : sums) first += of_thread;
  const TokenList list(p.from, row, head);
  const int count = list.count();
  const std::int64_t room = p.indices.shape[0];
  for (int i = static_cast<int>(threadIdx.x); i < count && first + i < room; i += kThreads) {
    element(p.indices, first + i, 0, 0) = paged_entry(p, row, list.token(i), list.kv_head());
  }
  if (threadIdx.x != 0) return;
  if (number == 0) element(p.indptr, 0, 0, 0) = 0;
  const std::int64_t last = first + count;
  element(p.indptr, number + 1, 0, 0) = static_cast<std::int32_t>(last < room ? last : room);
}

LaunchConfig per_list(const SelectionLists& lists, const PlanShape& shape,
                      std::size_t shared_bytes) {
  return {
      .grid = {static_cast<unsigned>(lists.selection_heads), static_cast<unsigned>(shape.num_rows)},
      .block = {kThreads},
      .shared_bytes = shared_bytes,
      .stream = shape.stream};
}

}  // namespace

void load_query(const QueryParams& p, const PlanShape& shape) {
  if (p.query.shape[0] == 0) return;
  launch(load_query_kernel,
         {.grid = {static_cast<unsigned>(p.query.shape[1]), static_cast<unsigned>(shape.num_rows),
                   static_cast<unsigned>(p.query_tokens)},
          .block = {kThreads},
          .shared_bytes = 0,
          .stream = shape.stream},
         p);
}

void adopt_lists(const SelectParams& p, const TensorView& cluster_ids, const TensorView& row_counts,
                 const PlanShape& shape) {
  if (shape.num_rows == 0) return;
  launch(adopt_lists_kernel, per_list(p.lists, shape, shared_size<BlockScan<kThreads>::Storage>()),
         p, cluster_ids, row_counts);
}

void write_token_ids(const TokenIdParams& p, const PlanShape& shape) {
  if (shape.num_rows == 0) return;
  launch(write_token_ids_kernel, per_list(p.from.lists, shape, 0), p);
}

void write_paged(const PagedParams& p, const PlanShape& shape) {
  if (shape.num_rows == 0) return;
  launch(write_paged_kernel, per_list(p.from.lists, shape, 0), p);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
