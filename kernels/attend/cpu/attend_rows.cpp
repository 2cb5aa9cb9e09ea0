// SPDX-License-Identifier: Apache-2.0
//
// attend_rows (stage 5, attend). Contract and shapes: attend/attend.hpp.
//
// Mapping: tiles of kRowTile rows; each row is widened once for all heads of a pass.
// Bound:   memory when rows are far apart, else conversion and arithmetic.
#include <algorithm>

#include "kernels/attend/cpu/ops.hpp"
#include "kernels/attend/cpu/softmax_state.hpp"
#include "kernels/attend/row_finder.hpp"
#include "kernels/common/dispatch.hpp"

namespace clusterkv::attend::CLUSTERKV_ISA {
namespace {

template <DType kDType, int kHeadDim>
void attend_pass(const AttendParams& p, int row, int first_q_head, int heads,
                 const RowFinder& finder, int piece) {
  const std::int64_t query_row = p.rows[row].query_row;
  const float* query = p.query + (query_row * p.num_q_heads + first_q_head) * kHeadDim;
  const Queries<kDType, kHeadDim> queries(query, heads);
  SoftmaxState<kDType, kHeadDim> state(queries, heads, p.softmax_scale * kLog2E);
  const SequenceView& sequence = p.rows[row];
  const int group = sequence.group(p.num_q_heads, p.num_kv_heads);
  const std::int64_t step = rows_per_piece(finder.count());
  const std::int64_t last = std::min(finder.count(), (piece + 1) * step);
  const auto fill = [&](std::int64_t first, RowTile& tile) {
    tile.count = static_cast<int>(std::clamp<std::int64_t>(last - first, 0, kRowTile));
    for (int i = 0; i < tile.count; ++i) {
      tile.key[i] = finder.find(first + i);
      tile.value[i] = tile.key[i] + kHeadDim * size_of(kDType);
    }
  };
  RowTile tiles[2];
  int now = 0;
  fill(piece * step, tiles[0]);
  for (std::int64_t first = piece * step; first < last; first += kRowTile) {
    RowTile& tile = tiles[now];
    RowTile& next = tiles[now ^= 1];
    fill(first + kRowTile, next);
    for (int g = 0; g < heads; ++g) {
      const auto seen = num_seen_rows(p, sequence, finder.count(), (first_q_head + g) % group);
      tile.seen[g] = static_cast<int>(std::clamp<std::int64_t>(seen - first, 0, tile.count));
    }
    state.add(tile, next);
  }
  for (int g = 0; g < heads; ++g) {
    p.partials.head(row, first_q_head + g, piece) = {state.m(g), state.l(g), 0.0F, 0};
    state.copy_o(g, p.partials.output(row, first_q_head + g, piece));
  }
}

}  // namespace

void attend_rows(const AttendParams& p, int row, int head, int piece) {
  const RowFinder finder(p, row, head);
  const int served = num_served(p, row);
  dispatch_row_dtype(p.live.dtype, [&](auto dtype) {
    dispatch_head_dim(p.live.head_dim, [&](auto head_dim) {
      for (int first = 0; first < served; first += kMaxPassHeads) {
        attend_pass<dtype.value, head_dim.value>(
            p, row, head * served + first, std::min(kMaxPassHeads, served - first), finder, piece);
      }
    });
  });
}

}  // namespace clusterkv::attend::CLUSTERKV_ISA
