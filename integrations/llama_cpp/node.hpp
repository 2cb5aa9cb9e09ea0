// SPDX-License-Identifier: Apache-2.0
//
// One attention node of the engine's graph: what it says, and views of its tensors.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <span>
#include <vector>

#include "clusterkv/types.hpp"
#include "integrations/llama_cpp/cell_sets.hpp"

namespace clusterkv::llama_cpp {

/// Query tokens of a node, at most: more are a prompt, which the engine attends to itself.
inline constexpr int kMaxQueryTokens = 16;

/// GGML_OP_FLASH_ATTN_EXT. Axes of ggml, innermost first:
///   query [head_dim, tokens, q_heads, streams]    key, value [head_dim, cells, kv_heads, streams]
///   mask [cells, tokens, 1, streams]              out [head_dim, q_heads, tokens, streams]
class Node {
 public:
  /// Whether a node can be answered here: decode attention over the engine's own cache, in a form
  /// that ClusterKV has. Looks at shapes, types and names alone.
  static bool is_supported(const ggml_tensor& op, int first_layer);

  explicit Node(ggml_tensor& op) : op_(op) {}

  [[nodiscard]] const ggml_tensor& key() const { return *op_.src[1]; }
  [[nodiscard]] const ggml_tensor& value() const { return *op_.src[2]; }
  [[nodiscard]] const ggml_tensor* mask() const { return op_.src[3]; }

  [[nodiscard]] int layer() const;
  [[nodiscard]] int head_dim() const { return static_cast<int>(op_.src[0]->ne[0]); }
  [[nodiscard]] int num_tokens() const {
    return static_cast<int>(op_.src[0]->ne[1]);
  }  ///< a stream
  [[nodiscard]] int num_q_heads() const { return static_cast<int>(op_.src[0]->ne[2]); }
  [[nodiscard]] int num_streams() const { return static_cast<int>(op_.src[0]->ne[3]); }
  [[nodiscard]] int num_rows() const { return num_tokens() * num_streams(); }
  [[nodiscard]] int num_kv_heads() const { return static_cast<int>(key().ne[2]); }
  [[nodiscard]] float scale() const;
  [[nodiscard]] float softcap() const;  ///< of logits, after the scale; 0: none

  /// Cells of a stream, and of all streams, in the engine's cache; not only those in use.
  [[nodiscard]] std::int64_t cells_per_stream() const { return key().view_src->ne[1]; }
  [[nodiscard]] std::int64_t num_cells() const {
    return cells_per_stream() * key().view_src->ne[2];
  }

  /// What each row sees: row = stream of this node * num_tokens + token. Streams are numbered as in the
  /// engine's cache.
  /// \throws ValueError  if a mask has values other than 0 and -inf
  [[nodiscard]] std::vector<MaskRow> mask_rows() const;

  /// First bytes of a cell's key: of its first KV head, so they change with token and position.
  [[nodiscard]] std::uint64_t print(int stream, int cell) const;

  /// The index within this node of a stream of the cache.
  [[nodiscard]] int local_stream(int stream) const { return stream - first_stream(); }

  /// [1, q_heads, head_dim] of one row, f32.
  [[nodiscard]] TensorView query(int row) const;
  [[nodiscard]] TensorView out(int row) const;

  /// Learned sinks, f32 [q_heads], or empty.
  [[nodiscard]] TensorView sink_logits() const;

 private:
  [[nodiscard]] int first_stream() const;
  ggml_tensor& op_;
};

/// Rows of the engine's cache in the order in which they are appended: a view where they follow each
/// other, else a copy; quantised ones as f32.
class CacheRows {
 public:
  struct Run {
    int stream = 0;  ///< within the node
    std::span<const int> cells;
  };
  /// [tokens, kv_heads, head_dim] of all runs, one after the other; valid until the next call.
  TensorView view(const ggml_tensor& cache, std::span<const Run> runs);
  [[nodiscard]] std::size_t bytes() const { return copy_.capacity(); }

 private:
  std::vector<std::byte> copy_;
};

/// The engine's cache of one layer as a node sees it, streams numbered as in the cache; for later steps.
ggml_tensor whole_cache(const ggml_tensor& rows);

/// All rows of one stream, [cells, kv_heads, head_dim]; not for quantised types.
TensorView stream_view(const ggml_tensor& cache, int stream);
bool is_float_type(ggml_type type);
DType dtype_of(ggml_type type);

}  // namespace clusterkv::llama_cpp
