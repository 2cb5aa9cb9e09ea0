// SPDX-License-Identifier: Apache-2.0
#include "src/recall/stored_rows.hpp"

#include <algorithm>

#include "kernels/common/carve.hpp"

namespace clusterkv::recall {
namespace {

using runtime::clustered_layers;
using runtime::dense_layers;

std::int64_t near_pages(const CacheConfig& config, std::int64_t num_pages) {
  return std::min(num_pages, runtime::capacity_of(config).near_pages);
}

/// None where no rows go to it.
std::unique_ptr<runtime::ColdFile> open_file(const CacheConfig& config, std::int64_t num_pages) {
  if (StoredRows::bytes(config, num_pages).file == 0) return nullptr;
  return std::make_unique<runtime::ColdFile>(config.store.cold_path);
}

}  // namespace

StoredRows::Bytes StoredRows::bytes(const CacheConfig& config, std::int64_t num_pages) {
  const std::int64_t near = near_pages(config, num_pages);
  const std::size_t far = RowArena::bytes(clustered_layers(config), num_pages - near);
  const bool in_memory = config.store.cold_path.empty();
  return {(Size(RowArena::bytes(dense_layers(config), num_pages)) +
           RowArena::bytes(clustered_layers(config), near))
              .get(),
          in_memory ? far : 0, in_memory ? 0 : far};
}

StoredRows::StoredRows(const CacheConfig& config, std::int64_t num_pages, MemoryResource& memory,
                       Device near, Device far)
    : num_dense_(runtime::count_dense_layers(config)),
      num_near_(near_pages(config, num_pages)),
      dense_(dense_layers(config), num_pages, memory, "row store of dense layers", near),
      near_(clustered_layers(config), num_near_, memory, "row store", near),
      file_(open_file(config, num_pages)),
      far_(clustered_layers(config), num_pages - num_near_,
           file_ == nullptr ? memory : static_cast<MemoryResource&>(*file_), "host store", far) {}

RowStore StoredRows::layer(int layer) const {
  if (layer < num_dense_) return dense_.layer(layer);
  const RowStore near = near_.layer(layer - num_dense_);
  RowStore store = far_.layer(layer - num_dense_);
  if (store.base == nullptr) return near;
  store.near = near.base;
  store.near_stride = near.head_stride;
  store.num_near = static_cast<std::uint32_t>(num_near_ * kPageRows);
  return store;
}

void StoredRows::expect(int layer, int kv_head, const RowRun& run) const noexcept {
  const RowStore store = StoredRows::layer(layer);
  if (!is_in_file(layer) || store.is_near(run.first)) return;
  runtime::ColdFile::expect(store.row(kv_head, run.first),
                            static_cast<std::size_t>(run.count) * store.row_bytes);
}

bool StoredRows::try_fetch(int layer, int kv_head, const RowRun& run,
                           Access access) const noexcept {
  const RowStore store = StoredRows::layer(layer);
  if (!is_in_file(layer) || store.is_near(run.first) || run.count == 0) return true;
  return runtime::ColdFile::fetch(store.row(kv_head, run.first),
                                  static_cast<std::size_t>(run.count) * store.row_bytes, access);
}

}  // namespace clusterkv::recall
