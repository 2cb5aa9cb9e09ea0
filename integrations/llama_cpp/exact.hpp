// SPDX-License-Identifier: Apache-2.0
//
// Attention over all cells that a mask row sees, read where the engine has them: for what no cache
// answers.
#pragma once

#include <span>
#include <vector>

#include "clusterkv/step.hpp"
#include "integrations/llama_cpp/node.hpp"

namespace clusterkv::llama_cpp {

/// [tokens, heads, dim] as a batch of one row.
TensorView as_batch(const TensorView& rows);

/// Learned sinks take their shares of a softmax that did not count them. One row, f32.
/// \param sink_logits  f32 [q_heads], or empty
void count_sinks(const TensorView& sink_logits, const AttentionOut& to);

class ExactAttention {
 public:
  /// Writes the node's output rows `which`, indices of `rows`.
  void attend(const Node& node, std::span<const MaskRow> rows, std::span<const int> which,
              Stream stream);

 private:
  CacheRows keys_, values_;  ///< of quantised caches
  std::vector<float> lse_;
};

}  // namespace clusterkv::llama_cpp
