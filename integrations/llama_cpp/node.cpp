// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/node.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string_view>
#include <tuple>

#include "clusterkv/error.hpp"

namespace clusterkv::llama_cpp {
namespace {

/// The layer in a name such as cache_k_l7, or -1.
int layer_of(const ggml_tensor& view, std::string_view prefix) {
  if (view.view_src == nullptr) return -1;
  const std::string_view name = view.view_src->name;
  if (!name.starts_with(prefix)) return -1;
  int layer = -1;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + prefix.size(), end, layer);
  return error == std::errc{} && rest == end ? layer : -1;
}

float float_param(const ggml_tensor& op, int index) {
  float value = 0;
  std::memcpy(&value, op.op_params + index, sizeof value);
  return value;
}

bool is_cache(const ggml_tensor& rows) {
  return (is_float_type(rows.type) || rows.type == GGML_TYPE_Q8_0) &&
         rows.nb[0] == ggml_type_size(rows.type) && rows.nb[1] >= rows.nb[2];
}

bool has_offered_shape(const ggml_tensor& op) {
  const auto& [query, key, value] = std::tie(*op.src[0], *op.src[1], *op.src[2]);
  const std::int64_t dim = query.ne[0];
  const bool dim_fits = dim == 64 || dim == 80 || dim == 96 || dim == 128 || dim == 256;
  return dim_fits && value.ne[0] == dim && value.type == key.type && query.type == GGML_TYPE_F32 &&
         query.ne[1] <= kMaxQueryTokens && query.ne[2] % key.ne[2] == 0 && key.ne[3] == query.ne[3];
}

bool has_offered_sinks(const ggml_tensor& op) {
  const ggml_tensor* sinks = op.src[4];
  return sinks == nullptr || (sinks->type == GGML_TYPE_F32 && ggml_is_contiguous(sinks) &&
                              ggml_nelements(sinks) == op.src[0]->ne[2]);
}

std::int64_t elements(std::size_t bytes, ggml_type type) {
  return static_cast<std::int64_t>(bytes / ggml_type_size(type));
}

TensorView view3(const void* data, DType dtype, std::array<std::int64_t, 3> shape,
                 std::array<std::int64_t, 3> stride) {
  TensorView view;
  view.data = const_cast<void*>(data);  // inputs are only read
  view.dtype = dtype;
  view.rank = 3;
  std::copy(shape.begin(), shape.end(), view.shape.begin());
  std::copy(stride.begin(), stride.end(), view.stride.begin());
  return view;
}

}  // namespace

bool is_float_type(ggml_type type) {
  return type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 || type == GGML_TYPE_F32;
}

DType dtype_of(ggml_type type) {
  if (type == GGML_TYPE_F16) return DType::kF16;
  return type == GGML_TYPE_BF16 ? DType::kBF16 : DType::kF32;
}

bool Node::is_supported(const ggml_tensor& op, int first_layer) {
  if (op.op != GGML_OP_FLASH_ATTN_EXT || op.type != GGML_TYPE_F32) return false;
  if (op.src[3] == nullptr || op.src[3]->type != GGML_TYPE_F16) return false;
  const bool has_bias = float_param(op, 1) != 0.0F;
  if (has_bias || !has_offered_shape(op) || !has_offered_sinks(op)) return false;
  const int layer = layer_of(*op.src[1], "cache_k_l");
  return layer >= first_layer && layer_of(*op.src[2], "cache_v_l") == layer &&
         is_cache(*op.src[1]) && is_cache(*op.src[2]);
}

int Node::layer() const {
  return layer_of(key(), "cache_k_l");
}

float Node::scale() const {
  return float_param(op_, 0);
}

float Node::softcap() const {
  return float_param(op_, 2);
}

int Node::first_stream() const {
  return static_cast<int>(key().view_offs / key().nb[3]);
}

std::vector<MaskRow> Node::mask_rows() const {
  constexpr std::uint16_t kSeen = 0, kHidden = 0xFC00;  // 0 and -inf
  const ggml_tensor& mask = *op_.src[3];
  std::vector<MaskRow> rows(static_cast<std::size_t>(num_rows()));
  for (int row = 0; row < num_rows(); ++row) {
    const int stream = row / num_tokens();
    const auto offset = static_cast<std::size_t>(row % num_tokens()) * mask.nb[1] +
                        static_cast<std::size_t>(stream) * mask.nb[3];
    const auto* values =
        reinterpret_cast<const std::uint16_t*>(static_cast<const char*>(mask.data) + offset);
    MaskRow& into = rows[static_cast<std::size_t>(row)];
    into.stream = first_stream() + stream;
    for (int cell = 0; cell < key().ne[1]; ++cell) {
      if (values[cell] == kSeen) {
        into.cells.push_back(cell);
      } else if (values[cell] != kHidden) {
        throw ValueError(
            fmt::format("mask: {:#x} at cell {}, expected 0 or -inf", values[cell], cell));
      }
    }
  }
  return rows;
}

std::uint64_t Node::print(int stream, int cell) const {
  std::uint64_t bytes = 0;
  const auto* row = static_cast<const char*>(key().data) +
                    static_cast<std::size_t>(local_stream(stream)) * key().nb[3] +
                    static_cast<std::size_t>(cell) * key().nb[1];
  std::memcpy(&bytes, row, sizeof bytes);
  return bytes;
}

TensorView Node::query(int row) const {
  const ggml_tensor& q = *op_.src[0];
  const auto* data = static_cast<const char*>(q.data) +
                     static_cast<std::size_t>(row % num_tokens()) * q.nb[1] +
                     static_cast<std::size_t>(row / num_tokens()) * q.nb[3];
  return view3(data, DType::kF32, {1, num_q_heads(), head_dim()},
               {0, elements(q.nb[2], q.type), 1});
}

TensorView Node::out(int row) const {
  auto* data = static_cast<char*>(op_.data) +
               static_cast<std::size_t>(row % num_tokens()) * op_.nb[2] +
               static_cast<std::size_t>(row / num_tokens()) * op_.nb[3];
  return view3(data, DType::kF32, {1, num_q_heads(), head_dim()},
               {0, elements(op_.nb[1], op_.type), 1});
}

TensorView Node::sink_logits() const {
  if (op_.src[4] == nullptr) return {};
  return contiguous_view(op_.src[4]->data, DType::kF32, {num_q_heads()});
}

ggml_tensor whole_cache(const ggml_tensor& rows) {
  ggml_tensor cache = rows;
  cache.data = static_cast<char*>(rows.data) - rows.view_offs;
  cache.view_offs = 0;
  return cache;
}

TensorView stream_view(const ggml_tensor& cache, int stream) {
  const auto* data =
      static_cast<const char*>(cache.data) + static_cast<std::size_t>(stream) * cache.nb[3];
  return view3(data, dtype_of(cache.type), {cache.ne[1], cache.ne[2], cache.ne[0]},
               {elements(cache.nb[1], cache.type), elements(cache.nb[2], cache.type), 1});
}

TensorView CacheRows::view(const ggml_tensor& cache, std::span<const Run> runs) {
  const bool is_float = is_float_type(cache.type);
  std::size_t tokens = 0;
  for (const Run& run : runs) tokens += run.cells.size();
  if (is_float && runs.size() == 1) {
    const auto cells = runs[0].cells;
    const bool follows = std::adjacent_find(cells.begin(), cells.end(),
                                            [](int a, int b) { return b != a + 1; }) == cells.end();
    if (follows) {
      TensorView view = stream_view(cache, runs[0].stream);
      view.data = static_cast<char*>(view.data) + static_cast<std::size_t>(cells[0]) * cache.nb[1];
      view.shape[0] = static_cast<std::int64_t>(cells.size());
      return view;
    }
  }
  const auto dim = static_cast<std::size_t>(cache.ne[0]),
             heads = static_cast<std::size_t>(cache.ne[2]);
  const DType dtype = dtype_of(cache.type);
  const std::size_t row_bytes = dim * size_of(dtype);
  copy_.resize(tokens * heads * row_bytes);
  std::byte* to = copy_.data();
  for (const Run& run : runs) {
    for (const int cell : run.cells) {
      for (std::size_t head = 0; head < heads; ++head, to += row_bytes) {
        const char* from = static_cast<const char*>(cache.data) +
                           static_cast<std::size_t>(run.stream) * cache.nb[3] +
                           static_cast<std::size_t>(cell) * cache.nb[1] + head * cache.nb[2];
        if (is_float) {
          std::memcpy(to, from, row_bytes);
        } else {
          ggml_get_type_traits(cache.type)
              ->to_float(from, reinterpret_cast<float*>(to), static_cast<std::int64_t>(dim));
        }
      }
    }
  }
  return contiguous_view(copy_.data(), dtype,
                         {static_cast<std::int64_t>(tokens), cache.ne[2], cache.ne[0]});
}

}  // namespace clusterkv::llama_cpp
