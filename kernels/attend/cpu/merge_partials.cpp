// SPDX-License-Identifier: Apache-2.0
//
// merge_partials (stage 5, attend). Contract and shapes: attend/attend.hpp.
#include "kernels/attend/cpu/ops.hpp"
#include "kernels/attend/cpu/output.hpp"
#include "kernels/attend/cpu/softmax_state.hpp"

namespace clusterkv::attend::CLUSTERKV_ISA {
namespace {

struct State {
  float m = kMinusInfinity;
  float l = 0.0F;
  float o[kMaxHeadDim] = {};
};

/// Mass of clusters whose value mean was not read goes to the mean of all clustered values.
void add_rest(const AttendParams& p, int row, int kv_head, float m, float rest, State& state) {
  const SequenceView& sequence = p.rows[row];
  const std::uint32_t record = sequence.segments[sequence.num_segments - 1].record;
  const float* sum = p.index.record_value_sum(kv_head, record);
  float o[kMaxHeadDim];
  for (int d = 0; d < p.index.value_dim; ++d) {
    o[d] = rest * (sum[d] / static_cast<float>(sequence.num_stored));
  }
  add_state(state.m, state.l, state.o, m, rest, o, p.index.value_dim);
}

}  // namespace

void merge_partials(const MergeParams& p, int row, int q_head) {
  const AttendParams& a = p.attend;
  const SequenceView& sequence = a.rows[row];
  const int served = num_served(a, row);
  const int head = q_head / served;
  const int row_pieces = num_row_pieces(num_attended_rows(a, row, head), kCpuPieceRows);
  State state;
  const auto add_piece = [&](int piece) {
    const PartialHead& part = a.partials.head(row, q_head, piece);
    add_state(state.m, state.l, state.o, part.m, part.l, a.partials.output(row, q_head, piece),
              a.partials.value_dim);
  };
  if (p.rows_part) {
    for (int piece = 0; piece < row_pieces; ++piece) add_piece(piece);
  }
  const float exact_m = state.m;
  const float exact_l = state.l;
  std::int64_t kept = 0;
  if (p.tail_part && has_tail(a, row)) {
    float rest = 0.0F;
    const int tail_pieces = num_tail_pieces(sequence.num_blocks);
    for (int piece = row_pieces; piece < row_pieces + tail_pieces; ++piece) {
      add_piece(piece);
      rest = rest + a.partials.head(row, q_head, piece).rest;
      kept += a.partials.head(row, q_head, piece).kept;
    }
    const float m = a.partials.head(row, q_head, row_pieces).m;
    add_rest(a, row, q_head / sequence.group(a.num_q_heads, a.num_kv_heads), m, rest, state);
  }
  if (p.kept != nullptr && q_head % served == 0) p.kept[a.lists.list(row, head)] = kept;
  if (p.tail_mass != nullptr) {
    const bool any = state.l > 0.0F;
    const float exact = exact_l > 0.0F ? exact_l * exp2_fixed(exact_m - state.m) : 0.0F;
    p.tail_mass[std::int64_t{row} * a.num_q_heads * a.query_tokens + q_head] =
        any ? 1.0F - exact / state.l : 0.0F;
  }
  const OutputHead to = output_head(a, sequence, q_head);
  if (!p.sink_logits.empty() && state.l > 0.0F) {
    const float nothing[kMaxHeadDim] = {};
    add_state(state.m, state.l, state.o, sink_m(p, to.q_head), 1.0F, nothing, a.partials.value_dim);
  }
  write_output(p.out, p.lse, to.row, to.q_head, state.m, state.l, state.o);
}

}  // namespace clusterkv::attend::CLUSTERKV_ISA
