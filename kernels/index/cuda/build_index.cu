// SPDX-License-Identifier: Apache-2.0
//
// build_index (stage 2, index). Contract and shapes: index/index.hpp.
//
// Mapping: three launches: which clusters have rows, and their offsets (a block of threads a
//          segment); means, value means and variances (kUpdateLanes lanes a cluster); profile, value
//          sum and spreads (a thread a channel, then a thread a cluster).
// Bound:   memory: each key is read twice, each value once.
// Bits:    those of the CPU: every sum runs over the same numbers in the same order.
#include <cstdint>

#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"
#include "kernels/common/cuda/rows.cuh"
#include "kernels/common/dispatch.hpp"
#include "kernels/index/cuda/index_ops.hpp"
#include "kernels/index/rules.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

constexpr int kThreads = 256;

/// Places in the index of one job's clusters that have rows, numbered `used`.
struct Places {
  const IndexStore& index;
  const IndexJob& job;

  __device__ std::uint32_t block(int used) const {
    return job.target.blocks[used / kBlockClusters];
  }
  __device__ std::int64_t entry(int used) const {
    return index.plane_block(job.source.kv_head, block(used)) * kBlockClusters +
           used % kBlockClusters;
  }
  __device__ std::uint32_t* offset(int logical_block) const {
    return index.block_offset(job.source.kv_head, job.target.blocks[logical_block]);
  }
  __device__ int num_entries() const { return job.target.segment.num_blocks * kBlockClusters; }
  __device__ std::int32_t* num_used() const {
    return index.record_used(job.source.kv_head, job.target.segment.record);
  }
};

// -------------------------------------------------------------------------------- map clusters

/// Entry `used` of the offsets: also the end of the block before, where it begins a block.
__device__ void set_offset(const Places& places, int used, std::uint32_t row) {
  const int block = used / kBlockClusters;
  if (block < places.job.target.segment.num_blocks) {
    places.offset(block)[used % kBlockClusters] = row;
  }
  if (used % kBlockClusters == 0 && block > 0) places.offset(block - 1)[kBlockClusters] = row;
}

__device__ void clear_row(std::byte* rows, std::int64_t entry, int bytes) {
  for (int i = 0; i < bytes; ++i) rows[entry * bytes + i] = std::byte{0};
}

__device__ void clear_entry(const Places& places, int used) {
  const IndexStore& index = places.index;
  const std::int64_t entry = places.entry(used);
  const auto element = static_cast<int>(IndexStore::element_bytes(index.dtype));
  clear_row(index.centroids, entry, element * index.head_dim);
  clear_row(index.value_means, entry, element * index.value_dim);
  index.centroid_scale[entry] = 0.0F;
  index.value_scale[entry] = 0.0F;
  index.spread[entry] = 0.0F;
}

__global__ __launch_bounds__(kThreads) void map_clusters_kernel(IndexStore index,
                                                                const IndexJob* jobs) {
  auto& storage = dynamic_shared<BlockScan<kThreads>::Storage>();
  const IndexJob& job = jobs[blockIdx.x];
  const Places places{index, job};
  const auto first_row = static_cast<std::uint32_t>(job.target.segment.first_row);
  int used = 0;
  for (int first = 0; first < job.num_clusters; first += kThreads) {
    const int c = first + static_cast<int>(threadIdx.x);
    const bool has_rows = c < job.num_clusters && job.offset[c + 1] > job.offset[c];
    int total = 0;
    const int mine = used + BlockScan<kThreads>(storage).exclusive(has_rows ? 1 : 0, total);
    used += total;
    if (c < job.num_clusters) job.used[c] = has_rows ? mine : -1;
    if (has_rows) {
      set_offset(places, mine, first_row + static_cast<std::uint32_t>(job.offset[c]));
    }
  }
  const std::uint32_t end = first_row + static_cast<std::uint32_t>(job.source.num_tokens);
  for (int u = used + static_cast<int>(threadIdx.x); u <= places.num_entries(); u += kThreads) {
    set_offset(places, u, end);
    if (u < places.num_entries()) clear_entry(places, u);
  }
  if (threadIdx.x == 0) *places.num_used() = used;
}

// ---------------------------------------------------------------------------------- summarise

/// kDim: of keys and values; 0: any two.
template <DType kDType, int kDim>
class Summariser {
 public:
  using Dim = DimOf<kDim>;
  static constexpr int kLanes = 16;
  static constexpr int kMine = (Dim::kMost / kChunk + kLanes - 1) / kLanes;
  using Values = float[kMine][kChunk];

  __device__ Summariser(const RowStore& live, const IndexStore& index, const IndexJob& job)
      : live_(live),
        places_{index, job},
        job_(job),
        head_dim_(live.head_dim),
        value_dim_(live.value_dim) {}

  __device__ void run() {
    const int cluster =
        static_cast<int>(blockIdx.y * (kThreads / kLanes)) + static_cast<int>(threadIdx.x) / kLanes;
    const bool exists = cluster < job_.num_clusters;
    const int used = exists ? job_.used[cluster] : -1;
    const int begin = used >= 0 ? job_.offset[cluster] : 0;
    const int end = used >= 0 ? job_.offset[cluster + 1] : 0;
    Values key = {};
    Values value = {};
    for (int i = begin; i < end; ++i) {
      const std::byte* row = find(i);
      add(row, head_dim_, key);
      add(row + 2 * head_dim_, value_dim_, value);
    }
    if (used >= 0) save(value, value_dim_, job_.value_sum + std::int64_t{used} * value_dim_);
    divide(key, end - begin);
    divide(value, end - begin);
    Values variance = {};
    for (int i = begin; i < end; ++i) add_squares(find(i), key, variance);
    if (used >= 0) save(variance, head_dim_, job_.variance + std::int64_t{used} * head_dim_);
    write(used, key, head_dim_, places_.index.centroids, places_.index.centroid_scale);
    write(used, value, value_dim_, places_.index.value_means, places_.index.value_scale);
  }

 private:
  /// use(chunk, its place among this lane's).
  template <class Use>
  __device__ static void for_each_chunk(Dim dim, const Use& use) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int chunk = static_cast<int>(threadIdx.x) % kLanes + i * kLanes;
      if (chunk < dim / kChunk) use(chunk, i);
    }
  }

  __device__ const std::byte* find(int i) const {
    const std::int64_t row = job_.source.first_live_row + job_.order[i];
    return live_.row(job_.source.kv_head, paged_row(job_.source.live_pages, row));
  }

  __device__ void add(const std::byte* row, Dim dim, Values& sum) const {
    for_each_chunk(dim, [&](int chunk, int i) {
      float x[kChunk];
      unpack_chunk<kDType>(load128(row + 16 * chunk), x);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) sum[i][j] = sum[i][j] + x[j];
    });
  }

  __device__ void add_squares(const std::byte* row, const Values& mean, Values& sum) const {
    for_each_chunk(head_dim_, [&](int chunk, int i) {
      float x[kChunk];
      unpack_chunk<kDType>(load128(row + 16 * chunk), x);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        const float difference = x[j] - mean[i][j];
        sum[i][j] = sum[i][j] + difference * difference;
      }
    });
  }

  __device__ static void divide(Values& values, int count) {
    if (count == 0) return;
#pragma unroll
    for (auto& chunk : values) {
#pragma unroll
      for (float& x : chunk) x = x / static_cast<float>(count);
    }
  }

  __device__ void save(const Values& values, Dim dim, float* to) const {
    for_each_chunk(dim, [&](int chunk, int i) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) to[chunk * kChunk + j] = values[i][j];
    });
  }

  /// Rounds a mean to the index dtype. All lanes of a warp take part; used < 0: nothing is written.
  __device__ void write(int used, const Values& mean, Dim dim, std::byte* to, float* scales) const {
    float max_abs = 0.0F;
    for_each_chunk(dim, [&](int, int i) {
#pragma unroll
      for (const float x : mean[i]) max_abs = fabsf(x) > max_abs ? fabsf(x) : max_abs;
    });
    for (int step = 1; step < kLanes; step *= 2) {
      const float other = __shfl_xor_sync(kAllLanes, max_abs, step);
      max_abs = other > max_abs ? other : max_abs;
    }
    if (used < 0) return;
    const IndexDType dtype = places_.index.dtype;
    const float scale = dtype == IndexDType::kInt8 ? index::int8_scale(max_abs) : 1.0F;
    const std::int64_t entry = places_.entry(used);
    std::byte* row = to + entry * dim * static_cast<std::int64_t>(IndexStore::element_bytes(dtype));
    for_each_chunk(dim, [&](int chunk, int i) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) write_element(row, chunk * kChunk + j, mean[i][j], scale);
    });
    if (threadIdx.x % kLanes == 0) scales[entry] = scale;
  }

  __device__ void write_element(std::byte* row, int d, float x, float scale) const {
    switch (places_.index.dtype) {
      case IndexDType::kInt8:
        reinterpret_cast<std::int8_t*>(row)[d] = index::to_int8(x, scale);
        break;
      case IndexDType::kBF16: reinterpret_cast<std::uint16_t*>(row)[d] = float_to_bf16(x); break;
      default: reinterpret_cast<float*>(row)[d] = x; break;
    }
  }

  const RowStore& live_;
  Places places_;
  const IndexJob& job_;
  Dim head_dim_;
  Dim value_dim_;
};

template <DType kDType, int kDim>
__global__ __launch_bounds__(kThreads) void summarise_kernel(RowStore live, IndexStore index,
                                                             const IndexJob* jobs) {
  Summariser<kDType, kDim>(live, index, jobs[blockIdx.x]).run();
}

// -------------------------------------------------------------------------------------- finish

/// Mean over channels of a cluster's variance relative to the segment's.
__device__ float mean_spread(const IndexJob& job, const float* profile, int used, int count,
                             int head_dim) {
  const float* variance = job.variance + std::int64_t{used} * head_dim;
  float sum = 0.0F;
  int live = 0;
  for (int d = 0; d < head_dim; ++d) {
    if (!(profile[d] > 0.0F)) continue;
    sum = sum + variance[d] / static_cast<float>(count) / profile[d];
    ++live;
  }
  return live > 0 ? sum / static_cast<float>(live) : 0.0F;
}

__global__ __launch_bounds__(kThreads) void finish_index_kernel(IndexStore index,
                                                                const IndexJob* jobs) {
  const IndexJob& job = jobs[blockIdx.x];
  const Places places{index, job};
  const int head_dim = index.head_dim;
  const int num_used = *places.num_used();
  const std::uint32_t record = job.target.segment.record;
  float* profile = index.record_profile(job.source.kv_head, record);
  float* value_sum = index.record_value_sum(job.source.kv_head, record);
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += kThreads) {
    float variances = 0.0F;
    for (int u = 0; u < num_used; ++u) {
      variances = variances + job.variance[std::int64_t{u} * head_dim + d];
    }
    profile[d] = variances / static_cast<float>(job.source.num_tokens);
  }
  for (int d = static_cast<int>(threadIdx.x); d < index.value_dim; d += kThreads) {
    float values = 0.0F;
    for (int u = 0; u < num_used; ++u) {
      values = values + job.value_sum[std::int64_t{u} * index.value_dim + d];
    }
    value_sum[d] = values;
  }
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < job.num_clusters; c += kThreads) {
    const int used = job.used[c];
    if (used < 0) continue;
    const int count = job.offset[c + 1] - job.offset[c];
    index.spread[places.entry(used)] = mean_spread(job, profile, used, count, head_dim);
  }
}

/// One block of threads a KV head, a thread a channel; jobs of a head are num_kv_heads apart.
__global__ void add_value_sums_kernel(IndexStore index, const IndexJob* jobs,
                                      const std::uint32_t* previous, int num_jobs) {
  const auto d = static_cast<int>(threadIdx.x);
  for (auto i = static_cast<int>(blockIdx.x); i < num_jobs; i += static_cast<int>(gridDim.x)) {
    const std::uint32_t record = jobs[i].target.segment.record;
    if (previous[i] == record) continue;
    const int kv_head = jobs[i].source.kv_head;
    float* sum = index.record_value_sum(kv_head, record);
    sum[d] = sum[d] + index.record_value_sum(kv_head, previous[i])[d];
  }
}

}  // namespace

void build_index(const RowStore& live, const IndexStore& index, const IndexJob* jobs,
                 const IndexShape& shape) {
  if (shape.num_jobs == 0) return;
  const auto num_jobs = static_cast<unsigned>(shape.num_jobs);
  launch(map_clusters_kernel,
         {.grid = {num_jobs},
          .block = {kThreads},
          .shared_bytes = shared_size<BlockScan<kThreads>::Storage>(),
          .stream = shape.stream},
         index, jobs);
  dispatch_value<DType::kF16, DType::kBF16>("kv_dtype", live.dtype, [&](auto dtype) {
    dispatch_dims(live.head_dim, live.value_dim, [&](auto dim) {
      constexpr int kClusters = kThreads / Summariser<dtype.value, dim.value>::kLanes;
      const int groups = (shape.max_clusters + kClusters - 1) / kClusters;
      launch(summarise_kernel<dtype.value, dim.value>,
             {.grid = {num_jobs, static_cast<unsigned>(groups)},
              .block = {kThreads},
              .shared_bytes = 0,
              .stream = shape.stream},
             live, index, jobs);
    });
  });
  launch(finish_index_kernel,
         {.grid = {num_jobs}, .block = {kThreads}, .shared_bytes = 0, .stream = shape.stream},
         index, jobs);
}

void add_value_sums(const IndexStore& index, const IndexJob* jobs, const std::uint32_t* previous,
                    int num_kv_heads, const IndexShape& shape) {
  if (shape.num_jobs == 0) return;
  launch(add_value_sums_kernel,
         {.grid = {static_cast<unsigned>(num_kv_heads)},
          .block = {static_cast<unsigned>(index.value_dim)},
          .shared_bytes = 0,
          .stream = shape.stream},
         index, jobs, previous, shape.num_jobs);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
