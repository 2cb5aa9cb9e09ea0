// SPDX-License-Identifier: Apache-2.0
//
// Decode attention over the caller's own tensors, without a cache: one query token per row. Runs on
// stream.executor, or without one on the calling thread.
#pragma once

#include <span>

#include "clusterkv/step.hpp"
#include "clusterkv/types.hpp"

namespace clusterkv {
inline namespace v0 {

/// Keys and values that an engine holds. The last axis must have stride 1, the others may have any.
struct DecodeArgs {
  TensorView query;         ///< [num_rows, num_q_heads, head_dim], f32, f16 or bf16, any strides
  TensorView key;           ///< [num_rows, num_tokens, num_kv_heads, head_dim], f32, f16 or bf16
  TensorView value;         ///< [num_rows, num_tokens, num_kv_heads, value_dim], dtype of key
  TensorView lengths;       ///< i32 [num_rows], each 0 .. num_tokens; or empty: all are num_tokens
  float softmax_scale = 0;  ///< 0: 1 / sqrt(head_dim)
  float logit_softcap = 0;  ///< as ModelShape::logit_softcap
};

/// Attention of each row over its first `lengths[row]` tokens. Length 0: O = 0, LSE = -inf.
///
/// The same bits for any number of threads and any batch. Allocates nothing that grows with the
/// tokens. head_dim and value_dim: 64, 80, 96, 128 or 256.
/// \throws ShapeError, DTypeError, ValueError  naming the argument, before anything is written
/// Cost: reads each key and value once.
void dense_decode(const DecodeArgs& args, const AttentionOut& out, Stream stream = {});

/// Attention of each row and head over the tokens named, in the order given.
/// \param token_ids  i32 [num_rows, num_kv_heads or num_q_heads, capacity]
/// \param counts     i32 [num_rows, as token_ids]: ids used, 0 .. capacity
/// \throws as dense_decode(); ValueError if an id is not in 0 .. lengths[row] - 1
void sparse_decode(const DecodeArgs& args, const TensorView& token_ids, const TensorView& counts,
                   const AttentionOut& out, Stream stream = {});

/// Attention over the union of disjoint sets of keys from the attention over each: the softmax of
/// the parts' LSE weights their outputs. Parts are merged in the order given.
/// \param parts  at least one; all of the shapes of `total`, each with its LSE
/// \param total  may be one of the parts
/// \throws ShapeError, DTypeError  naming the part
/// Source: the online softmax identity.
void merge_states(std::span<const AttentionOut> parts, const AttentionOut& total,
                  Stream stream = {});

}  // namespace v0
}  // namespace clusterkv
