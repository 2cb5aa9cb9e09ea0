// SPDX-License-Identifier: Apache-2.0
#include "src/recall/stored_rows.hpp"

namespace clusterkv::recall {
namespace {

int num_layers_in_memory(const CacheConfig& config) {
  return config.store.cold_path.empty() ? config.model.num_layers
                                        : runtime::count_dense_layers(config);
}

ModelShape with_layers(const ModelShape& model, int num_layers) {
  ModelShape result = model;
  result.num_layers = num_layers;
  return result;
}

}  // namespace

StoredRows::Bytes StoredRows::bytes(const CacheConfig& config, std::int64_t num_pages) {
  const ModelShape& m = config.model;
  const int warm = num_layers_in_memory(config);
  return {RowArena::bytes(with_layers(m, warm), num_pages),
          RowArena::bytes(with_layers(m, m.num_layers - warm), num_pages)};
}

StoredRows::StoredRows(const CacheConfig& config, std::int64_t num_pages, MemoryResource& memory)
    : num_in_memory_(num_layers_in_memory(config)),
      warm_(with_layers(config.model, num_in_memory_), num_pages, memory, "row store") {
  if (num_in_memory_ == config.model.num_layers) return;
  file_ = std::make_unique<runtime::ColdFile>(config.store.cold_path);
  cold_ = RowArena(with_layers(config.model, config.model.num_layers - num_in_memory_), num_pages,
                   *file_, "cold row store");
}

void StoredRows::expect(int layer, int kv_head, const RowRun& run) const noexcept {
  if (!in_file(layer)) return;
  const RowStore store = StoredRows::layer(layer);
  runtime::ColdFile::expect(store.row(kv_head, run.first),
                            static_cast<std::size_t>(run.count) * store.row_bytes);
}

bool StoredRows::try_fetch(int layer, int kv_head, const RowRun& run,
                           Access access) const noexcept {
  if (!in_file(layer) || run.count == 0) return true;
  const RowStore store = StoredRows::layer(layer);
  return runtime::ColdFile::fetch(store.row(kv_head, run.first),
                                  static_cast<std::size_t>(run.count) * store.row_bytes, access);
}

}  // namespace clusterkv::recall
