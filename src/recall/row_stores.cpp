// SPDX-License-Identifier: Apache-2.0
#include "src/recall/row_stores.hpp"

#include "kernels/common/carve.hpp"

namespace clusterkv::recall {
namespace {

Size plane_bytes(const ModelShape& model, std::int64_t num_pages) {
  return Size(num_pages) * kPageRows * row_bytes(model);
}

}  // namespace

std::size_t row_bytes(const ModelShape& model) {
  return static_cast<std::size_t>(model.head_dim + model.value_dim) * size_of(model.kv_dtype);
}

std::size_t RowArena::bytes(const ModelShape& model, std::int64_t num_pages) {
  return (Size(model.num_layers) * model.num_kv_heads * plane_bytes(model, num_pages)).get();
}

RowArena::RowArena(const ModelShape& model, std::int64_t num_pages, MemoryResource& memory,
                   const char* what, Device device)
    : num_kv_heads_(model.num_kv_heads), memory_(memory, bytes(model, num_pages), what, device) {
  first_layer_.base = memory_.data();
  first_layer_.head_stride = plane_bytes(model, num_pages).get();
  first_layer_.row_bytes = row_bytes(model);
  first_layer_.dtype = model.kv_dtype;
  first_layer_.head_dim = model.head_dim;
  first_layer_.value_dim = model.value_dim;
}

RowStore RowArena::layer(int layer) const {
  RowStore store = first_layer_;
  if (store.base != nullptr) {
    store.base += static_cast<std::size_t>(layer) * static_cast<std::size_t>(num_kv_heads_) *
                  store.head_stride;
  }
  return store;
}

}  // namespace clusterkv::recall
