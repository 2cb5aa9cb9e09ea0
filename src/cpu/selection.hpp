// SPDX-License-Identifier: Apache-2.0
//
// Reads a caller's Selection: checks it once, then walks its clusters and token positions.
#pragma once

#include <cstdint>

#include "clusterkv/step.hpp"
#include "clusterkv/types.hpp"
#include "src/index/cluster_index.hpp"
#include "src/stages.hpp"

namespace clusterkv::cpu {

class SelectionReader {
 public:
  /// \throws ShapeError, DTypeError, ValueError  if the selection is not one for this step and layer
  SelectionReader(const index::ClusterIndex& index, const LayerCall& call, int num_kv_heads,
                  const Selection& selection);

  /// Clusters of a list.
  [[nodiscard]] int num_clusters(int row, int head) const;
  /// Rows of all clusters of a list.
  [[nodiscard]] std::int64_t num_rows(int row, int head) const;
  [[nodiscard]] std::int32_t cluster(int row, int head, int i) const {
    return read(selection_.cluster_ids, row, head, i);
  }
  [[nodiscard]] std::int32_t count(int row, int head, int i) const {
    return read(selection_.row_counts, row, head, i);
  }
  [[nodiscard]] int num_heads() const { return heads_; }

  /// Tokens that a list stands for: sinks, selected or, in a dense layer, all stored, pending.
  [[nodiscard]] std::int64_t num_tokens(int row, int head) const;

  /// visit(position) for each of them, in this order.
  template <class Visit>
  void for_each_token(int row, int head, const Visit& visit) const {
    const SequenceView& view = plan_.views[static_cast<std::size_t>(row)];
    for (int i = 0; i < view.num_sinks; ++i) visit(std::int64_t{i});
    if (dense_) {
      for (std::int64_t i = 0; i < view.num_stored; ++i) visit(view.num_sinks + i);
    }
    for (int i = 0; i < num_clusters(row, head); ++i) {
      for (int r = 0; r < count(row, head, i); ++r) {
        visit(position(row, head, cluster(row, head, i), r));
      }
    }
    for (int i = 0; i < view.num_pending; ++i) visit(view.num_sinks + view.num_stored + i);
  }

 private:
  static std::int32_t read(const TensorView& t, int row, int head, int i) {
    const std::int64_t at = row * t.stride[0] + head * t.stride[1] + i * t.stride[2];
    return static_cast<const std::int32_t*>(t.data)[at];
  }
  [[nodiscard]] int kv_head(int head) const { return head / (heads_ / num_kv_heads_); }
  [[nodiscard]] std::int64_t position(int row, int head, int cluster, int row_in_cluster) const;
  void check_list(int row, int head) const;

  const Selection& selection_;
  const DecodePlan::Impl& plan_;
  bool dense_;
  int heads_;
  int num_kv_heads_;
  IndexStore index_;
  const std::uint32_t* positions_;
  std::int64_t positions_stride_;
};

/// A selection's lists, into a plan's own.
void copy_lists(const SelectionReader& reader, int num_rows, const SelectionLists& lists);

/// ClusterKVCache::token_ids() and ClusterSelector::token_ids().
void write_token_ids(const SelectionReader& reader, int num_rows, const TensorView& ids,
                     const TensorView& counts);

}  // namespace clusterkv::cpu
