// SPDX-License-Identifier: Apache-2.0
#include "src/selection.hpp"

#include "src/runtime/check.hpp"

namespace clusterkv {

using runtime::check_tensor;
using runtime::fail;

SelectionReader::SelectionReader(const Core& core, int layer, const DecodePlan& plan,
                                 const Selection& selection)
    : selection_(selection),
      plan_(*plan.impl),
      dense_(core.is_dense(layer)),
      heads_(plan.impl->scratch.lists.selection_heads),
      num_kv_heads_(core.settings().model.num_kv_heads),
      index_(dense_ ? IndexStore{} : core.index().layer(layer)),
      positions_(core.index().positions(layer)),
      positions_stride_(core.index().positions_stride()) {
  const std::int64_t rows = plan.num_rows();
  check_tensor(selection.cluster_ids, {"selection.cluster_ids", {rows, heads_, -1}, {DType::kI32}});
  check_tensor(
      selection.row_counts,
      {"selection.row_counts", {rows, heads_, selection.cluster_ids.shape[2]}, {DType::kI32}});
  for (int row = 0; row < plan.num_rows(); ++row) {
    for (int head = 0; head < heads_; ++head) check_list(row, head);
  }
}

void SelectionReader::check_list(int row, int head) const {
  const SequenceView& view = plan_.views[static_cast<std::size_t>(row)];
  const int limit = dense_ ? 0 : view.num_blocks * kBlockClusters;
  int previous = -1;
  for (int i = 0; i < num_clusters(row, head); ++i) {
    const int id = cluster(row, head, i);
    if (id <= previous || id >= limit) {
      fail<ValueError>(
          "selection.cluster_ids: row {}, head {} has {} after {}, expected ascending "
          "ids below {}",
          row, head, id, previous, limit);
    }
    const int size = index_.cluster_size(view, kv_head(head), id);
    if (count(row, head, i) < 1 || count(row, head, i) > size) {
      fail<ValueError>(
          "selection.row_counts: row {}, head {} takes {} rows of cluster {}, expected "
          "1 .. {}",
          row, head, count(row, head, i), id, size);
    }
    previous = id;
  }
}

int SelectionReader::num_clusters(int row, int head) const {
  const int capacity = static_cast<int>(selection_.cluster_ids.shape[2]);
  int clusters = 0;
  while (clusters < capacity && cluster(row, head, clusters) != -1) ++clusters;
  return clusters;
}

std::int64_t SelectionReader::num_rows(int row, int head) const {
  std::int64_t rows = 0;
  for (int i = 0; i < num_clusters(row, head); ++i) rows += count(row, head, i);
  return rows;
}

std::int64_t SelectionReader::num_tokens(int row, int head) const {
  const SequenceView& view = plan_.views[static_cast<std::size_t>(row)];
  const std::int64_t middle = dense_ ? view.num_stored : num_rows(row, head);
  return view.num_sinks + middle + view.num_pending;
}

std::int64_t SelectionReader::position(int row, int head, int cluster, int row_in_cluster) const {
  const SequenceView& view = plan_.views[static_cast<std::size_t>(row)];
  const std::uint32_t block = view.blocks[cluster / kBlockClusters];
  const std::uint32_t first = index_.block_offset(kv_head(head), block)[cluster % kBlockClusters];
  const std::uint32_t stored = paged_row(view.row_pages, std::int64_t{first} + row_in_cluster);
  return positions_[kv_head(head) * positions_stride_ + stored];
}

void write_token_ids(const SelectionReader& reader, int num_rows, const TensorView& ids,
                     const TensorView& counts) {
  const int heads = reader.num_heads();
  check_tensor(ids, {"ids", {num_rows, heads, -1}, {DType::kI32}});
  check_tensor(counts, {"counts", {num_rows, heads}, {DType::kI32}});
  for (int row = 0; row < num_rows; ++row) {
    for (int head = 0; head < heads; ++head) {
      const std::int64_t needed = reader.num_tokens(row, head);
      if (needed <= ids.shape[2]) continue;
      fail<ShapeError>("ids: {} entries a list, expected at least {}", ids.shape[2], needed);
    }
  }
  for (int row = 0; row < num_rows; ++row) {
    for (int head = 0; head < heads; ++head) {
      auto* list =
          static_cast<std::int32_t*>(ids.data) + row * ids.stride[0] + head * ids.stride[1];
      std::int64_t count = 0;
      reader.for_each_token(row, head, [&](std::int64_t token) {
        list[count++ * ids.stride[2]] = static_cast<std::int32_t>(token);
      });
      static_cast<std::int32_t*>(counts.data)[row * counts.stride[0] + head * counts.stride[1]] =
          static_cast<std::int32_t>(count);
      for (; count < ids.shape[2]; ++count) list[count * ids.stride[2]] = -1;
    }
  }
}

}  // namespace clusterkv
