// SPDX-License-Identifier: Apache-2.0
#include "tools/clusterkv/trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "clusterkv/error.hpp"
#include "tools/clusterkv/half.hpp"

namespace clusterkv::tool {
namespace {

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw FormatError("trace: " + fmt::format(format, std::forward<Args>(args)...));
}

template <class Number>
Number read_number(const SafeTensors& file, const std::string& name) {
  const auto found = file.metadata.find(name);
  if (found == file.metadata.end()) fail("metadata {} is missing", name);
  const std::string& text = found->second;
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    fail("metadata {}: '{}', expected a number", name, text);
  }
  return value;
}

const TensorView& find_tensor(const SafeTensors& file, const std::string& name) {
  const auto found = file.tensors.find(name);
  if (found == file.tensors.end()) fail("tensor {} is missing", name);
  return found->second;
}

void check_shape(const std::string& name, const TensorView& tensor,
                 const std::array<std::int64_t, 3>& shape) {
  const bool matches = tensor.rank == 3 && tensor.shape[0] == shape[0] &&
                       tensor.shape[1] == shape[1] && tensor.shape[2] == shape[2];
  if (!matches) {
    fail("{}: rank {}, shape [{}, {}, {}], expected [{}, {}, {}]", name, tensor.rank,
         tensor.shape[0], tensor.shape[1], tensor.shape[2], shape[0], shape[1], shape[2]);
  }
  if (tensor.dtype == DType::kI32) fail("{}: dtype I32, expected floats", name);
}

std::set<int> find_layers(const SafeTensors& file) {
  std::set<int> ids;
  for (const auto& [name, tensor] : file.tensors) {
    int id = 0;
    if (!name.starts_with("layers.")) continue;
    const char* begin = name.data() + 7;
    const auto [end, error] = std::from_chars(begin, name.data() + name.size(), id);
    if (error != std::errc() || id < 0 || end == name.data() + name.size() || *end != '.') {
      fail("tensor {}: expected layers.N.key, value or query", name);
    }
    ids.insert(id);
  }
  if (ids.empty()) fail("no tensor layers.N.key");
  return ids;
}

}  // namespace

Trace make_trace(SafeTensors file) {
  Trace trace{};
  trace.softmax_scale = read_number<float>(file, "softmax_scale");
  if (file.metadata.contains("logit_softcap")) {
    trace.logit_softcap = read_number<float>(file, "logit_softcap");
  }
  trace.query_start = read_number<int>(file, "query_start");
  trace.num_q_heads = read_number<int>(file, "query_heads");
  trace.num_kv_heads = read_number<int>(file, "kv_heads");
  trace.head_dim = read_number<int>(file, "head_dim");
  if (!std::isfinite(trace.softmax_scale) || trace.softmax_scale <= 0.0F) {
    fail("metadata softmax_scale: {}, expected finite and > 0", trace.softmax_scale);
  }
  if (trace.logit_softcap != 0.0F &&
      !(trace.logit_softcap >= 1e-3F && trace.logit_softcap <= 1e6F)) {
    fail("metadata logit_softcap: {}, expected 0, or 1e-3 .. 1e6", trace.logit_softcap);
  }
  if (trace.num_kv_heads < 1 || trace.num_q_heads < 1 || trace.head_dim < 1 ||
      trace.num_q_heads % trace.num_kv_heads != 0) {
    fail("metadata query_heads, kv_heads, head_dim: {}, {}, {}, expected a multiple and > 0",
         trace.num_q_heads, trace.num_kv_heads, trace.head_dim);
  }
  const std::set<int> ids = find_layers(file);
  const TensorView& first = find_tensor(file, fmt::format("layers.{}.key", *ids.begin()));
  if (first.rank != 3 || first.shape[0] < 1 || first.shape[0] > 1 << 30) {
    fail("layers.{}.key: {} tokens, expected 1 .. 2^30", *ids.begin(), first.shape[0]);
  }
  trace.num_tokens = static_cast<int>(first.shape[0]);
  if (trace.query_start < 1 || trace.query_start >= trace.num_tokens) {
    fail("metadata query_start: {}, expected 1 .. {}", trace.query_start, trace.num_tokens - 1);
  }
  trace.num_queries = trace.num_tokens - trace.query_start;
  for (const int id : ids) {
    const std::string name = fmt::format("layers.{}.", id);
    const TraceLayer layer{id, find_tensor(file, name + "key"), find_tensor(file, name + "value"),
                           find_tensor(file, name + "query")};
    check_shape(name + "key", layer.key, {trace.num_tokens, trace.num_kv_heads, trace.head_dim});
    check_shape(name + "value", layer.value,
                {trace.num_tokens, trace.num_kv_heads, trace.head_dim});
    check_shape(name + "query", layer.query,
                {trace.num_queries, trace.num_q_heads, trace.head_dim});
    trace.layers.push_back(layer);
  }
  trace.file = std::move(file);  // moving the bytes does not move what the views point to
  return trace;
}

Trace read_trace(const std::string& path) {
  return make_trace(read_safetensors(path));
}

std::vector<const TraceLayer*> chosen_layers(const Trace& trace, const std::vector<int>& ids) {
  std::vector<const TraceLayer*> layers;
  for (const TraceLayer& layer : trace.layers) {
    if (ids.empty() || std::find(ids.begin(), ids.end(), layer.id) != ids.end()) {
      layers.push_back(&layer);
    }
  }
  if (!ids.empty() && layers.size() != ids.size()) {
    throw ConfigError(
        fmt::format("--layers: {}, expected layers of the trace, each once", fmt::join(ids, ",")));
  }
  return layers;
}

TensorView slice(const TensorView& tensor, std::int64_t first, std::int64_t last) {
  TensorView part = tensor;
  part.data = static_cast<std::byte*>(tensor.data) +
              first * tensor.stride[0] * static_cast<std::int64_t>(size_of(tensor.dtype));
  part.shape[0] = last - first;
  return part;
}

SharedLayers::SharedLayers(const std::vector<const TraceLayer*>& layers, Backend backend) {
  const auto share = [&](TensorView& tensor) {
    if (backend == Backend::kCpu) return;
    const auto elements = static_cast<std::size_t>(tensor.shape[0] * tensor.stride[0]);
    const auto* from = static_cast<const std::byte*>(tensor.data);
    const SharedAllocator<std::byte> allocator(backend);
    copies_.emplace_back(from, from + elements * size_of(tensor.dtype), allocator);
    tensor.data = copies_.back().data();
    tensor.device = shared_device(backend);
  };
  for (const TraceLayer* layer : layers) {
    layers_.push_back(*layer);
    for (TensorView* tensor : {&layers_.back().key, &layers_.back().value, &layers_.back().query}) {
      share(*tensor);
    }
  }
}

void widen(const TensorView& contiguous, std::vector<float>& to) {
  const auto* from = static_cast<const std::byte*>(contiguous.data);
  const std::size_t step = size_of(contiguous.dtype);
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (contiguous.dtype == DType::kF32) {
      std::memcpy(&to[i], from + i * step, step);
      continue;
    }
    std::uint16_t bits = 0;
    std::memcpy(&bits, from + i * step, step);
    to[i] = contiguous.dtype == DType::kF16 ? f16_to_float(bits)
                                            : std::bit_cast<float>(std::uint32_t{bits} << 16);
  }
}

}  // namespace clusterkv::tool
