// SPDX-License-Identifier: Apache-2.0
//
// Attention inputs of a model, taken from the engine's attention nodes as they run, into the file format that
// `clusterkv replay` reads.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace clusterkv::llama_cpp {

/// Records one sequence that a fresh context reads from its first token, with flash attention and an f16
/// cache.
class Recorder {
 public:
  /// \param layers       of the model
  /// \param query_start  queries of tokens before this one are left out
  Recorder(std::span<const int> layers, int query_start);

  /// The engine's evaluation callback; `recorder` is one.
  static bool on_node(ggml_tensor* node, bool ask, void* recorder) noexcept;

  /// A safetensors file; replaces what is there.
  /// \throws std::runtime_error  if a layer was not seen or attends in a way that the format has no
  ///         words for, or the file cannot be written
  void write(const std::string& path, std::span<const std::int32_t> tokens) const;

 private:
  struct Layer {
    std::vector<std::uint16_t> key, value, query;  ///< f16
    int num_tokens = 0, num_q_heads = 0, num_kv_heads = 0, head_dim = 0;
    float scale = 0, softcap = 0;
    std::string problem;
  };
  void record(const ggml_tensor& node, Layer& layer) const;

  std::map<int, Layer> layers_;
  int query_start_;
};

}  // namespace clusterkv::llama_cpp
