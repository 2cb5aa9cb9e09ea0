// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "clusterkv/types.hpp"
#include "tools/clusterkv/safetensors.hpp"
#include "tools/clusterkv/shared_memory.hpp"

namespace clusterkv::tool {

/// Recorded attention inputs of one layer, RoPE applied.
struct TraceLayer {
  int id;
  TensorView key;    ///< [token, kv_head, head_dim]
  TensorView value;  ///< as key
  TensorView query;  ///< [token - query_start, q_head, head_dim]; may attend up to its own token
};

struct Trace {
  SafeTensors file;
  float softmax_scale;
  float logit_softcap;  ///< 0: none
  int query_start;
  int num_tokens;
  int num_queries;
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
  std::vector<TraceLayer> layers;
};

/// A trace from a parsed file.
/// \throws FormatError  if tensors or metadata are missing, or do not fit together
Trace make_trace(SafeTensors file);
Trace read_trace(const std::string& path);

/// The layers with these ids, in the order of the trace; all for an empty list.
/// \throws ConfigError  if the trace lacks one, or one is named twice
std::vector<const TraceLayer*> chosen_layers(const Trace& trace, const std::vector<int>& ids);

/// Rows [first, last) of the first axis.
TensorView slice(const TensorView& tensor, std::int64_t first, std::int64_t last);

/// Layers whose tensors a backend reads: those of a trace, or copies of them.
class SharedLayers {
 public:
  SharedLayers(const std::vector<const TraceLayer*>& layers, Backend backend);
  SharedLayers(const SharedLayers&) = delete;
  SharedLayers& operator=(const SharedLayers&) = delete;
  [[nodiscard]] std::size_t size() const { return layers_.size(); }
  [[nodiscard]] const TraceLayer& operator[](std::size_t i) const { return layers_[i]; }

 private:
  std::vector<SharedVector<std::byte>> copies_;
  std::vector<TraceLayer> layers_;
};

/// All elements as floats; `to` has the right size.
void widen(const TensorView& contiguous, std::vector<float>& to);

}  // namespace clusterkv::tool
