// SPDX-License-Identifier: Apache-2.0
#include "src/cpu/selection.hpp"

#include "src/cpu/scratch.hpp"
#include "src/runtime/check.hpp"

namespace clusterkv::cpu {

using runtime::check_tensor;
using runtime::fail;

SelectionReader::SelectionReader(const index::ClusterIndex& index, const LayerCall& call,
                                 int num_kv_heads, const Selection& selection)
    : selection_(selection),
      plan_(call.plan),
      dense_(call.dense),
      heads_(memory_of(call.plan).scratch.lists.selection_heads),
      num_kv_heads_(num_kv_heads),
      index_(dense_ ? IndexStore{} : index.layer(call.layer)),
      positions_(index.positions(call.layer)),
      positions_stride_(index.positions_stride()) {
  const auto rows = static_cast<std::int64_t>(plan_.rows.size());
  check_tensor(selection.cluster_ids, {"selection.cluster_ids", {rows, heads_, -1}, {DType::kI32}});
  check_tensor(
      selection.row_counts,
      {"selection.row_counts", {rows, heads_, selection.cluster_ids.shape[2]}, {DType::kI32}});
  for (int row = 0; row < rows; ++row) {
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

void copy_lists(const SelectionReader& reader, int num_rows, const SelectionLists& lists) {
  for (int row = 0; row < num_rows; ++row) {
    for (int head = 0; head < lists.selection_heads; ++head) {
      // The selection may be these very lists: entry i is read before it is written.
      const int clusters = reader.num_clusters(row, head);
      lists.num_clusters[lists.list(row, head)] = clusters;
      lists.num_rows[lists.list(row, head)] = static_cast<int>(reader.num_rows(row, head));
      for (int i = 0; i < clusters; ++i) {
        const std::int32_t id = reader.cluster(row, head, i);
        const std::int32_t count = reader.count(row, head, i);
        lists.clusters_of(row, head)[i] = id;
        lists.counts_of(row, head)[i] = count;
      }
    }
  }
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

}  // namespace clusterkv::cpu
