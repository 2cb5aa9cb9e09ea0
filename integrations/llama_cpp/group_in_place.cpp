// SPDX-License-Identifier: Apache-2.0
//
// A step over the engine's own rows: the selector says which, sparse_decode()
// attends to them where they lie, and cluster means stand for the others.
#include <algorithm>

#include "clusterkv/attention.hpp"
#include "integrations/llama_cpp/group.hpp"

namespace clusterkv::llama_cpp {
namespace {

/// One row, [rows, heads, ...], as a batch of its own.
TensorView row_of(TensorView tensor, std::int64_t row) {
  tensor.data = static_cast<std::byte*>(tensor.data) +
                row * tensor.stride[0] * static_cast<std::int64_t>(size_of(tensor.dtype));
  tensor.shape[0] = 1;
  return tensor;
}

}  // namespace

/// Positions of a choice become cells, a list for each member and selection
/// head.
void Group::choose_cells(int index, const Selection& selection) {
  std::size_t longest = 0;
  for (const Member& member : members_) {
    longest = std::max(longest, member.set->cells.size());
  }
  const auto rows = static_cast<std::int64_t>(members_.size());
  const std::int64_t heads = selection.cluster_ids.shape[1];
  const auto capacity = static_cast<std::int64_t>(longest);
  cells_.resize(static_cast<std::size_t>(rows * heads * capacity));
  cell_counts_.resize(static_cast<std::size_t>(rows * heads));
  cells_view_ = contiguous_view(cells_.data(), DType::kI32, {rows, heads, capacity});
  cell_counts_view_ = contiguous_view(cell_counts_.data(), DType::kI32, {rows, heads});
  cache_->selector()->token_ids(index, *plan_, selection, cells_view_, cell_counts_view_,
                                {.executor = executor_});
  for (std::size_t list = 0; list < cell_counts_.size(); ++list) {
    const CellSet& set = *members_[list / static_cast<std::size_t>(heads)].set;
    std::int32_t* entries = cells_.data() + list * longest;
    ++counts_.lists;
    counts_.listed_tokens += cell_counts_[list];
    for (std::int32_t i = 0; i < cell_counts_[list]; ++i) {
      entries[i] = set.cells[static_cast<std::size_t>(entries[i])];
    }
  }
}

void Group::attend_in_place(int index, const Node& node, const TensorView& queries,
                            const TensorView& outs) {
  const Stream stream{.executor = executor_};
  ClusterSelector& selector = *cache_->selector();
  const Selection selection = selector.select(index, *plan_, queries, stream);
  choose_cells(index, selection);
  const std::int64_t rows = queries.shape[0], heads = queries.shape[1], dim = queries.shape[2];
  rest_.resize(static_cast<std::size_t>(rows * heads * dim));
  lse_.resize(static_cast<std::size_t>(3 * rows * heads));
  const auto lse_view = [&](std::int64_t which) {
    return contiguous_view(lse_.data() + which * rows * heads, DType::kF32, {rows, heads});
  };
  std::int64_t query = 0;
  for (std::size_t member = 0; member < members_.size(); ++member) {
    if (step_rows_[member].num_query_tokens == 0) continue;
    const int local = node.local_stream(members_[member].set->stream);
    const auto row = static_cast<std::int64_t>(member);
    sparse_decode({.query = row_of(queries, query),
                   .key = as_batch(stream_view(node.key(), local)),
                   .value = as_batch(stream_view(node.value(), local)),
                   .softmax_scale = node.scale(),
                   .logit_softcap = node.softcap()},
                  row_of(cells_view_, row), row_of(cell_counts_view_, row),
                  {row_of(outs, query), row_of(lse_view(0), query)}, stream);
    ++query;
  }
  std::vector<AttentionOut> parts = {{outs, lse_view(0)}};
  if (config_.select.tail != Tail::kNone) {
    parts.push_back({contiguous_view(rest_.data(), DType::kF32, {rows, heads, dim}), lse_view(1)});
    selector.attend_tail(index, *plan_, selection, queries, parts.back(), stream);
  }
  const AttentionOut total{outs, lse_view(2)};
  merge_states(parts, total, stream);
  for (std::int64_t row = 0; row < rows; ++row) {
    count_sinks(node.sink_logits(), {row_of(outs, row), row_of(lse_view(2), row)});
  }
}

}  // namespace clusterkv::llama_cpp
