// SPDX-License-Identifier: Apache-2.0
#include "src/attend/attend_stage.hpp"

#include "src/runtime/parallel.hpp"

namespace clusterkv::attend {

void attend(const MergeParams& params, int num_rows, std::int32_t* item_starts,
            Executor& executor) {
  const AttendParams& p = params.attend;
  const int heads = p.lists.selection_heads;
  item_starts[0] = 0;
  for (int list = 0; list < num_rows * heads; ++list) {
    const int row = list / heads;
    int pieces = 0;
    if (p.rows[row].query_row >= 0) {
      if (params.rows_part)
        pieces += num_row_pieces(num_attended_rows(p, row, list % heads), kCpuPieceRows);
      if (params.tail_part && has_tail(p, row)) pieces += num_tail_pieces(p.rows[row].num_blocks);
    }
    item_starts[list + 1] = item_starts[list] + pieces;
  }
  runtime::parallel_items(executor, item_starts, num_rows * heads, [&](int list, int item) {
    const int row = list / heads;
    const int head = list % heads;
    const int row_pieces =
        params.rows_part ? num_row_pieces(num_attended_rows(p, row, head), kCpuPieceRows) : 0;
    if (item < row_pieces) {
      cpu().attend_rows(p, row, head, item);
    } else {
      cpu().attend_tail(p, row, head, item - row_pieces);
    }
  });
  const int max_heads = p.num_q_heads * p.query_tokens;
  runtime::parallel_for(executor, num_rows * max_heads, [&](int item) {
    const int row = item / max_heads;
    const int head = item % max_heads;
    if (p.rows[row].query_row >= 0 && head < num_row_heads(p, row)) {
      cpu().merge_partials(params, row, head);
    }
  });
}

void write_nothing(const TensorView& out, const TensorView& lse, int query_row) {
  const StateParams nothing{nullptr, nullptr, 0, out, lse};
  for (int q_head = 0; q_head < out.shape[1]; ++q_head) {
    cpu().merge_states(nothing, query_row, q_head);
  }
}

}  // namespace clusterkv::attend
