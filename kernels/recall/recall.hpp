// SPDX-License-Identifier: Apache-2.0
//
// Stage 4 of 5: recall. Rows into the stores, and selected rows near to where they are read.
//   in  : new keys and values; selected row ids     out : rows in stores, quads in slots
//   paper: arXiv 2412.03213, cluster cache; quads and second chance: ours   map : docs/pipeline.md
#pragma once

#include <cstddef>
#include <cstdint>

#include "clusterkv/types.hpp"
#include "kernels/common/cpu/isa.hpp"
#include "kernels/common/views.hpp"

namespace clusterkv::recall {

// ------------------------------------------------------------------------------- append rows
/// Converts new keys and values to rows of the live store.
struct AppendParams {
  TensorView key;            ///< [tokens, num_kv_heads, head_dim], f32, f16 or bf16, any strides
  TensorView value;          ///< as key, of value_dim; empty: values are stored as 0
  std::int64_t first_token;  ///< of the tensors
  int num_tokens;
  const std::uint32_t* pages;
  std::int64_t first_row;  ///< logical live row of the first token
  RowStore live;
};

// --------------------------------------------------------------------------------- read rows
/// Rows of a store back to token order.
struct ReadParams {
  RowStore store;
  TensorView key;    ///< [tokens, num_kv_heads, head_dim]
  TensorView value;  ///< [tokens, num_kv_heads, value_dim]
};

// -------------------------------------------------------------------------------- copy quads
/// Quads from the store to slots.
struct QuadCopy {
  std::uint32_t quad;
  std::uint32_t slot;  ///< kNoSlot: none, read where it is
};
struct CopyParams {
  RowStore stored;
  std::byte* slots;         ///< [kv_head, slot, kQuadRows rows]
  std::size_t head_stride;  ///< bytes from plane to plane
};

// ------------------------------------------------------------------------------------- on the CPU
/// One call does one item of work on the caller's thread.
struct CpuOps {
  /// One KV head.
  void (*append_rows)(const AppendParams& params, int kv_head);
  /// Whether tokens [first, first + count) of a tensor [tokens, heads, dim] are all finite.
  bool (*all_finite)(const TensorView& tensor, std::int64_t first, std::int64_t count);
  /// Row `row` of the store to token `token` of the tensors.
  void (*read_row)(const ReadParams& params, int kv_head, std::uint32_t row, std::int64_t token);
  void (*copy_quads)(const CopyParams& params, int kv_head, const QuadCopy* copies, int count);
};

/// For the instruction set in use.
inline const CpuOps& cpu() {
  return ops_of<CpuOps>(cpu_isa());
}

}  // namespace clusterkv::recall
