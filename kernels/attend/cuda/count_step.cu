// SPDX-License-Identifier: Apache-2.0
//
// What a layer's attention counts (stage 5, attend): attend/count.hpp over all rows and heads.
//
// Mapping: one block of threads, a thread a row and selection head; sums in the order of threads.
// Bound:   latency.
#include <cstdint>

#include "kernels/attend/count.hpp"
#include "kernels/attend/cuda/attend_ops.hpp"
#include "kernels/common/cuda/collectives.cuh"
#include "kernels/common/cuda/device.cuh"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

constexpr int kThreads = 128;

struct CountShared {
  StepStats part[kThreads];
};

__device__ void add(StepStats& to, const StepStats& from) {
  to.selections += from.selections;
  to.dense_selections += from.dense_selections;
  to.attended_tokens += from.attended_tokens;
  to.sink_tokens += from.sink_tokens;
  to.selected_tokens += from.selected_tokens;
  to.pending_tokens += from.pending_tokens;
  to.selected_clusters += from.selected_clusters;
  to.scored_clusters += from.scored_clusters;
  to.row_bytes += from.row_bytes;
  to.index_bytes += from.index_bytes;
  to.value_mean_bytes += from.value_mean_bytes;
  to.estimates += from.estimates;
  to.estimated_mass += from.estimated_mass;
}

__global__ __launch_bounds__(kThreads) void count_step_kernel(attend::MergeParams p, int num_rows,
                                                              StepStats* stats) {
  auto& shared = dynamic_shared<CountShared>();
  const int heads = p.attend.lists.selection_heads;
  const int num_lists = num_rows * heads;
  StepStats mine;
  for (int list = static_cast<int>(threadIdx.x); list < num_lists; list += kThreads) {
    attend::count_list(p, list / heads, list % heads, mine);
  }
  shared.part[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x >= 2) return;
  for (int i = 0; i < min(kThreads, num_lists); ++i) add(stats[threadIdx.x], shared.part[i]);
}

}  // namespace

void count_step(const attend::MergeParams& params, StepStats* stats, const PlanShape& shape) {
  if (shape.num_rows == 0) return;
  launch(count_step_kernel,
         {.grid = {1},
          .block = {kThreads},
          .shared_bytes = shared_size<CountShared>(),
          .stream = shape.stream},
         params, shape.num_rows, stats);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
