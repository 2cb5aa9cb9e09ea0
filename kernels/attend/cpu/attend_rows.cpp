// SPDX-License-Identifier: Apache-2.0
//
// attend_rows (stage 5, attend). Contract and shapes: attend/attend.hpp.
//
// Mapping: tiles of kTileRows rows, in RowOrder; each row is widened once for all heads of a pass.
// Bound:   memory when rows are far apart, else conversion and arithmetic.
#include <algorithm>

#include "kernels/attend/cpu/ops.hpp"
#include "kernels/attend/cpu/softmax_state.hpp"
#include "kernels/attend/row_finder.hpp"
#include "kernels/common/dispatch.hpp"

namespace clusterkv::attend::CLUSTERKV_ISA {
namespace {

/// Where the rows of a piece lie. What most rows need is at hand: chosen rows that no slot holds.
struct PieceRows {
  PieceRows(const AttendParams& p, int row, int head, const RowFinder& all, std::int64_t first)
      : finder(all),
        begin(first),
        chosen_begin(p.rows[row].num_sinks - first),
        row_bytes(p.stored.row_bytes) {
    if (p.all_rows || p.slots.directory != nullptr) return;
    ids = p.lists.rows_of(row, head);
    num_chosen = p.lists.num_rows[p.lists.list(row, head)];
    stored = p.stored.row(head / (p.lists.selection_heads / p.num_kv_heads), 0);
  }

  [[nodiscard]] CLUSTERKV_SIMD const std::byte* key(std::int64_t i) const {
    const std::int64_t at = i - chosen_begin;
    return at >= 0 && at < num_chosen ? stored + ids[at] * row_bytes : finder.find(begin + i);
  }

  const RowFinder& finder;
  std::int64_t begin;
  std::int64_t chosen_begin;
  std::size_t row_bytes;
  const std::uint32_t* ids = nullptr;
  std::int64_t num_chosen = 0;
  const std::byte* stored = nullptr;
};

/// What a pass is of: a row's query heads [first, first + heads), over one piece.
struct Pass {
  int row;
  int first;
  int heads;
  int piece;
};

template <DType kDType, int kHeadDim, class ValueDim>
void attend_pass(const AttendParams& p, const Pass& pass, const RowFinder& finder,
                 ValueDim value_dim) {
  const auto [row, first_q_head, heads, piece] = pass;
  const int selection_head = first_q_head / num_served(p, row);
  const std::int64_t step = rows_per_piece(finder.count(), kCpuPieceRows);
  const std::int64_t begin = piece * step;
  const std::int64_t count = std::min(finder.count() - begin, step);
  const SequenceView& sequence = p.rows[row];
  // Those that every query token sees.
  const RowOrder order(
      std::clamp<std::int64_t>(num_seen_rows(p, sequence, finder.count(), 0) - begin, 0, count));
  const auto find = [order, rows = PieceRows(p, row, selection_head, finder, begin)](
                        std::int64_t i, const std::byte*& key, const std::byte*& value) {
    key = rows.key(order(i));
    value = key + kHeadDim * size_of(kDType);
  };
  using State = SoftmaxState<kDType, kHeadDim, ValueDim>;
  RowTile tile;
  tile.begin(count, find);
  State::fetch_first(tile, value_dim);
  const std::int64_t query_row = p.rows[row].query_row;
  const float* query = p.query + (query_row * p.num_q_heads + first_q_head) * kHeadDim;
  const Queries<kDType, kHeadDim> queries(query, heads);
  State state(queries, heads, p.softmax_scale * kLog2E, Softcap(p.logit_softcap), value_dim);
  const int group = sequence.group(p.num_q_heads, p.num_kv_heads);
  for (std::int64_t first = 0; first < count;) {
    for (int g = 0; g < heads; ++g) {
      const auto seen = num_seen_rows(p, sequence, finder.count(), (first_q_head + g) % group);
      tile.seen[g] =
          static_cast<int>(std::clamp<std::int64_t>(seen - begin - first, 0, tile.count));
    }
    state.add(tile);
    first += kTileRows;
    tile.advance(first, count, find);
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
      dispatch_value_dim<head_dim.value>(p.live.value_dim, [&](auto value_dim) {
        for (int first = 0; first < served; first += kMaxPassHeads) {
          const int heads = std::min(kMaxPassHeads, served - first);
          attend_pass<dtype.value, head_dim.value>(p, {row, head * served + first, heads, piece},
                                                   finder, value_dim);
        }
      });
    });
  });
}

}  // namespace clusterkv::attend::CLUSTERKV_ISA
