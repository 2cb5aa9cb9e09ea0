// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/recorder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>

namespace clusterkv::llama_cpp {
namespace {

/// The layer of an attention node: its keys lie in a tensor such as cache_k_l7. Or -1.
int layer_of(const ggml_tensor& node) {
  constexpr std::string_view kPrefix = "cache_k_l";
  if (node.op != GGML_OP_FLASH_ATTN_EXT || node.src[1]->view_src == nullptr) return -1;
  const std::string_view name = node.src[1]->view_src->name;
  int layer = -1;
  if (!name.starts_with(kPrefix)) return -1;
  std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  return layer;
}

float float_param(const ggml_tensor& node, int index) {
  float value = 0;
  std::memcpy(&value, node.op_params + index, sizeof value);
  return value;
}

const char* at(const ggml_tensor& tensor, std::int64_t i1, std::int64_t i2) {
  return static_cast<const char*>(tensor.data) + static_cast<std::size_t>(i1) * tensor.nb[1] +
         static_cast<std::size_t>(i2) * tensor.nb[2];
}

/// What the format cannot say, or empty. `length`: tokens up to the node's last.
std::string problem_of(const ggml_tensor& node, std::int64_t length) {
  const ggml_tensor &key = *node.src[1], &value = *node.src[2];
  if (key.type != GGML_TYPE_F16 || value.type != GGML_TYPE_F16) return "its cache is not f16";
  if (key.ne[0] != value.ne[0]) return "its keys and values differ in length";
  if (node.src[0]->ne[3] != 1) return "there are several sequences";
  if (float_param(node, 1) != 0.0F) return "it has ALiBi";
  if (node.src[4] != nullptr) return "it has learned sinks";
  const ggml_tensor& mask = *node.src[3];
  const auto* row = reinterpret_cast<const std::uint16_t*>(at(mask, node.src[0]->ne[1] - 1, 0));
  for (std::int64_t cell = 0; cell < length; ++cell) {
    if (row[cell] != 0) {
      return fmt::format("token {} does not attend to token {}", length - 1, cell);
    }
  }
  return {};
}

/// Rows [first, first + count) of a tensor [head_dim, rows, heads], as [row, head, head_dim] in f16.
void append_rows(const ggml_tensor& tensor, std::int64_t first, std::int64_t count,
                 std::vector<std::uint16_t>& to) {
  for (std::int64_t row = first; row < first + count; ++row) {
    for (std::int64_t head = 0; head < tensor.ne[2]; ++head) {
      const char* from = at(tensor, row, head);
      const auto dim = static_cast<std::size_t>(tensor.ne[0]);
      to.resize(to.size() + dim);
      std::uint16_t* into = to.data() + to.size() - dim;
      if (tensor.type == GGML_TYPE_F16) {
        std::memcpy(into, from, dim * sizeof *into);
      } else {
        ggml_fp32_to_fp16_row(reinterpret_cast<const float*>(from), into, tensor.ne[0]);
      }
    }
  }
}

struct Part {
  std::string name, dtype;
  std::vector<std::size_t> shape;
  std::span<const std::byte> bytes;
};

void write_safetensors(const std::string& path, const std::vector<Part>& parts,
                       const nlohmann::json& metadata) {
  nlohmann::json header = {{"__metadata__", metadata}};
  std::size_t end = 0;
  for (const Part& part : parts) {
    const std::size_t begin = end;
    end += part.bytes.size();
    header[part.name] = {
        {"dtype", part.dtype}, {"shape", part.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t size = text.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&size), sizeof size);
  file.write(text.data(), static_cast<std::streamsize>(size));
  for (const Part& part : parts) {
    file.write(reinterpret_cast<const char*>(part.bytes.data()),
               static_cast<std::streamsize>(part.bytes.size()));
  }
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

}  // namespace

Recorder::Recorder(std::span<const int> layers, int query_start) : query_start_(query_start) {
  for (const int layer : layers) layers_[layer];
}

bool Recorder::on_node(ggml_tensor* node, bool ask, void* recorder) noexcept {
  auto& self = *static_cast<Recorder*>(recorder);
  const auto found = self.layers_.find(layer_of(*node));
  if (found == self.layers_.end()) return !ask;
  Layer& layer = found->second;
  if (ask || !layer.problem.empty()) return true;
  try {
    self.record(*node, layer);
  } catch (const std::exception& error) {  // not through the engine
    layer.problem = error.what();
  }
  return true;
}

void Recorder::record(const ggml_tensor& node, Layer& layer) const {
  const ggml_tensor &query = *node.src[0], &key = *node.src[1], &value = *node.src[2];
  const std::int64_t first = layer.num_tokens, count = query.ne[1];
  layer.problem = problem_of(node, first + count);
  if (!layer.problem.empty()) return;
  layer.num_q_heads = static_cast<int>(query.ne[2]);
  layer.num_kv_heads = static_cast<int>(key.ne[2]);
  layer.head_dim = static_cast<int>(key.ne[0]);
  layer.scale = float_param(node, 0);
  layer.softcap = float_param(node, 2);
  // The cells of a fresh cache are filled in order.
  append_rows(key, first, count, layer.key);
  append_rows(value, first, count, layer.value);
  const std::int64_t left_out = std::clamp(query_start_ - first, std::int64_t{0}, count);
  append_rows(query, left_out, count - left_out, layer.query);
  layer.num_tokens += static_cast<int>(count);
}

void Recorder::write(const std::string& path, std::span<const std::int32_t> tokens) const {
  if (layers_.empty()) throw std::runtime_error("no layer to record");
  const Layer& first = layers_.begin()->second;
  std::vector<Part> parts = {{"tokens", "I32", {tokens.size()}, std::as_bytes(tokens)}};
  for (const auto& [id, layer] : layers_) {
    const auto fail = [&](const std::string& why) {
      throw std::runtime_error(fmt::format("layer {} cannot be recorded: {}", id, why));
    };
    if (!layer.problem.empty()) fail(layer.problem);
    if (layer.num_tokens == 0) fail("the engine showed no attention over its cache");
    if (layer.num_tokens != static_cast<int>(tokens.size())) {
      fail(fmt::format("it saw {} tokens, expected {}", layer.num_tokens, tokens.size()));
    }
    if (layer.num_q_heads != first.num_q_heads || layer.num_kv_heads != first.num_kv_heads ||
        layer.head_dim != first.head_dim || layer.scale != first.scale ||
        layer.softcap != first.softcap) {
      fail("its shape, scale or softcap is not that of the others");
    }
    const auto add = [&](const char* name, const std::vector<std::uint16_t>& rows, int heads) {
      const auto dim = static_cast<std::size_t>(layer.head_dim),
                 num_heads = static_cast<std::size_t>(heads);
      parts.push_back({fmt::format("layers.{}.{}", id, name),
                       "F16",
                       {rows.size() / dim / num_heads, num_heads, dim},
                       std::as_bytes(std::span(rows))});
    };
    add("key", layer.key, layer.num_kv_heads);
    add("value", layer.value, layer.num_kv_heads);
    add("query", layer.query, layer.num_q_heads);
  }
  write_safetensors(path, parts,
                    {{"softmax_scale", fmt::format("{}", first.scale)},
                     {"logit_softcap", fmt::format("{}", first.softcap)},
                     {"query_start", fmt::format("{}", query_start_)},
                     {"query_heads", fmt::format("{}", first.num_q_heads)},
                     {"kv_heads", fmt::format("{}", first.num_kv_heads)},
                     {"head_dim", fmt::format("{}", first.head_dim)}});
}

}  // namespace clusterkv::llama_cpp
