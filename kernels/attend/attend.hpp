// SPDX-License-Identifier: Apache-2.0
//
// Stage 5 of 5: attend. Exact attention over the chosen rows, the rest from cluster means.
//   in  : SelectionLists, scores, rows in stores and slots       out : output and LSE
//   paper: arXiv 2412.03213, attention; tail: ours               map : docs/pipeline.md
//
// A row of a step is cut into pieces (rules.hpp). Each piece leaves a partial (m, l, o): m in units
// of log2, l = sum of 2^(x - m), o = sum of 2^(x - m) v. merge adds them in order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "clusterkv/config.hpp"
#include "clusterkv/types.hpp"
#include "kernels/attend/rules.hpp"
#include "kernels/common/cpu/isa.hpp"
#include "kernels/common/math.hpp"
#include "kernels/common/views.hpp"

namespace clusterkv::attend {

/// Partial result of one piece and query head. l = 0: nothing attended, m and o mean nothing.
struct PartialHead {
  float m;
  float l;
  float rest;         ///< tail pieces: mass 2^(x - m) of clusters whose value mean is not read
  std::int32_t kept;  ///< tail pieces: clusters whose value mean was read
};

/// Where partials lie: heads [row, q_head, piece], outputs [row, q_head, piece, value_dim]; the heads of
/// all query tokens.
struct Partials {
  PartialHead* heads;
  float* outputs;
  int num_q_heads;
  int value_dim;

  [[nodiscard]] CLUSTERKV_HD std::int64_t at(int row, int q_head, int piece) const {
    return (static_cast<std::int64_t>(row) * num_q_heads + q_head) * kMaxPieces + piece;
  }
  [[nodiscard]] CLUSTERKV_HD PartialHead& head(int row, int q_head, int piece) const {
    return heads[at(row, q_head, piece)];
  }
  [[nodiscard]] CLUSTERKV_HD float* output(int row, int q_head, int piece) const {
    return outputs + at(row, q_head, piece) * value_dim;
  }
};

struct AttendParams {
  const SequenceView* rows;  ///< [num_rows]
  const float* query;        ///< [query row, q_head, head_dim]; a row's heads: SequenceView
  RowStore stored;
  RowStore live;
  SlotView slots;
  SelectionLists lists;
  bool all_rows;  ///< a dense layer: all stored rows in place, lists are not read
  Partials partials;
  int num_q_heads;
  int num_kv_heads;
  float softmax_scale;
  // The tail. With Tail::kNone nothing below is read.
  Tail tail;
  float tail_share;
  IndexStore index;
  const RowScores* scores;   ///< [num_rows]
  const HeadTotals* totals;  ///< [num_rows, num_q_heads * query_tokens]
  int query_tokens = 1;      ///< of a row, at most
  float logit_softcap = 0;   ///< in natural logits; 0: none
};

/// Query heads of a plan row, those of all its query tokens; and those that a selection head serves.
CLUSTERKV_HD inline int num_row_heads(const AttendParams& p, int row) {
  return p.num_q_heads * p.rows[row].num_query_tokens;
}
CLUSTERKV_HD inline int num_served(const AttendParams& p, int row) {
  return num_row_heads(p, row) / p.lists.selection_heads;
}

/// Query tokens are causal: of `num_rows` attended rows, member `m` of a group sees those that are not
/// later than its token. On a device a later row weighs 0, so its values must be finite
/// (docs/decisions/004).
CLUSTERKV_HD inline std::int64_t num_seen_rows(const AttendParams& p, const SequenceView& row,
                                               std::int64_t num_rows, int m) {
  return num_rows - (row.num_query_tokens - 1 - m / (p.num_q_heads / p.num_kv_heads));
}

/// Where the output of a plan row's query head goes.
struct OutputHead {
  std::int64_t row;
  int q_head;
};
CLUSTERKV_HD inline OutputHead output_head(const AttendParams& p, const SequenceView& row,
                                           int head) {
  const int group = row.group(p.num_q_heads, p.num_kv_heads);
  const int heads = p.num_q_heads / p.num_kv_heads;
  return {std::int64_t{row.query_row} + head % group / heads, head / group * heads + head % heads};
}

/// Rows that one selection head of a plan row attends to: sinks, stored rows, pending, in this
/// order.
CLUSTERKV_HD inline std::int64_t num_attended_rows(const AttendParams& p, int row, int head) {
  const SequenceView& view = p.rows[row];
  const std::int64_t stored =
      p.all_rows ? view.num_stored : p.lists.num_rows[p.lists.list(row, head)];
  return view.num_sinks + stored + view.num_pending;
}

/// Whether a plan row has a tail in this call. Rows of a cluster that were not selected have the mass
/// (size - taken) 2^t; it goes to the cluster's value mean if the cluster is_kept() for some head, else
/// to `rest`.
CLUSTERKV_HD inline bool has_tail(const AttendParams& p, int row) {
  return p.tail != Tail::kNone && !p.all_rows && !p.rows[row].everything;
}

// ------------------------------------------------------------------------------------- merge
struct MergeParams {
  AttendParams attend;
  bool rows_part;               ///< merge the row pieces
  bool tail_part;               ///< merge the tail pieces and the rest
  TensorView out;               ///< [query rows, num_q_heads, value_dim]; last stride 1
  TensorView lse;               ///< f32 [query rows, num_q_heads], or empty
  float* tail_mass;             ///< as totals: share of the softmax given to the tail; or null
  std::int64_t* kept;           ///< [num_rows, selection_heads], value means read; or null
  TensorView sink_logits = {};  ///< f32 [num_q_heads] of the model, or empty
};

/// m of a learned sink, whose l is 1 and o is 0.
CLUSTERKV_HD inline float sink_m(const MergeParams& p, int q_head) {
  const TensorView& t = p.sink_logits;
  return kLog2E * static_cast<const float*>(t.data)[q_head * t.stride[0]];
}

// -------------------------------------------------------------------------- the caller's rows
/// Attention over an engine's own tensors. Row r of the batch is cut into the same pieces.
struct DecodeParams {
  TensorView query;      ///< [num_rows, num_q_heads, head_dim], any strides
  TensorView key;        ///< [num_rows, num_tokens, num_kv_heads, head_dim], last stride 1
  TensorView value;      ///< as key, of value_dim
  TensorView lengths;    ///< i32 [num_rows], or empty
  TensorView token_ids;  ///< i32 [num_rows, heads, capacity], or empty: all tokens
  TensorView counts;     ///< i32 [num_rows, heads]
  float softmax_scale;
  TensorView out;
  TensorView lse;
  float logit_softcap = 0;  ///< in natural logits; 0: none
};

/// One row and query head of merge_states().
struct StateParams {
  const TensorView* outs;
  const TensorView* lses;
  int num_parts;
  TensorView out;
  TensorView lse;
};

// ------------------------------------------------------------------------------------- on the CPU
/// One call does one item of work on the caller's thread.
struct CpuOps {
  /// One piece of a plan row and selection head, for all query heads it serves.
  /// Cost: reads each row once per kMaxPassHeads query heads.
  void (*attend_rows)(const AttendParams& params, int row, int head, int piece);
  /// One tail piece: clusters of blocks_per_piece() blocks.
  void (*attend_tail)(const AttendParams& params, int row, int head, int piece);
  /// One plan row and one of its num_row_heads().
  void (*merge_partials)(const MergeParams& params, int row, int q_head);
  /// One row and `head`: a KV head, or a query head if token_ids has num_q_heads of them.
  void (*decode)(const DecodeParams& params, int row, int head);
  void (*merge_states)(const StateParams& params, std::int64_t row, int q_head);
};

/// For the instruction set in use.
inline const CpuOps& cpu() {
  return ops_of<CpuOps>(cpu_isa());
}

}  // namespace clusterkv::attend
