// SPDX-License-Identifier: Apache-2.0
#include "src/select/select_stage.hpp"

#include <algorithm>

#include "src/runtime/parallel.hpp"

namespace clusterkv::select {
namespace {

/// Blocks of one scoring task: enough work to hide what a task costs, and fewer where threads would be
/// left without one. Sums are of single blocks, so results do not depend on the cut.
constexpr int kTaskBlocks = 16;
constexpr int kFewestTaskBlocks = 2;
constexpr int kTasksOfThread = 4;

int task_blocks(const ScoreParams& params, int num_rows, int threads) {
  std::int64_t blocks = 0;
  for (int row = 0; row < num_rows; ++row) {
    if (params.rows[row].is_scored()) blocks += params.rows[row].num_blocks;
  }
  const std::int64_t share =
      blocks * params.num_kv_heads / (std::int64_t{kTasksOfThread} * threads);
  return static_cast<int>(std::clamp<std::int64_t>(share, kFewestTaskBlocks, kTaskBlocks));
}

}  // namespace

void score(const ScoreParams& params, int num_rows, std::int32_t* item_starts, Executor& executor) {
  const int num_lists = num_rows * params.num_kv_heads;
  const int task = task_blocks(params, num_rows, std::max(1, executor.concurrency()));
  item_starts[0] = 0;
  for (int list = 0; list < num_lists; ++list) {
    const SequenceView& row = params.rows[list / params.num_kv_heads];
    const int tasks = row.is_scored() ? (row.num_blocks + task - 1) / task : 0;
    item_starts[list + 1] = item_starts[list] + tasks;
  }
  runtime::parallel_items(executor, item_starts, num_lists, [&](int list, int item) {
    const int row = list / params.num_kv_heads;
    const int first = item * task;
    const int last = std::min(params.rows[row].num_blocks, first + task);
    cpu().score_clusters(params, {row, list % params.num_kv_heads, first, last});
  });
}

void choose(const SelectParams& params, int num_rows, const SelectScratch& scratch,
            Executor& executor) {
  const int heads = params.lists.selection_heads;
  runtime::parallel_for(executor, num_rows * heads, [&](int list) {
    const int row = list / heads;
    std::int64_t first = 0;  // clusters of the rows before
    for (int i = 0; i < row; ++i) first += params.rows[i].num_blocks;
    const std::int64_t clusters = params.rows[row].num_blocks;
    const std::int64_t at = (first * heads + clusters * (list % heads)) * kBlockClusters;
    cpu().select_clusters(params, row, list % heads,
                          {scratch.keys + at, scratch.ids + at, scratch.sizes + at});
  });
}

void expand(const SelectParams& params, int num_rows, Executor& executor) {
  const int heads = params.lists.selection_heads;
  const int served = heads / params.num_kv_heads;
  runtime::parallel_for(executor, num_rows * heads, [&](int list) {
    const int row = list / heads;
    const int head = list % heads;
    cpu().expand_rows(params.rows[row], params.index, head / served, params.lists, row, head);
  });
}

}  // namespace clusterkv::select
