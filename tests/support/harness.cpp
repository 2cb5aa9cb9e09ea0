// SPDX-License-Identifier: Apache-2.0
#include "tests/support/harness.hpp"

namespace clusterkv::testing {

ModelShape small_model(int num_layers, int num_q_heads, int num_kv_heads, int head_dim) {
  ModelShape model;
  model.num_layers = num_layers;
  model.num_q_heads = num_q_heads;
  model.num_kv_heads = num_kv_heads;
  model.head_dim = head_dim;
  model.kv_dtype = small_model_dtype;
  return model;
}

CacheConfig small_config(const ModelShape& model) {
  CacheConfig config = CacheConfig::standard(model);
  config.cluster.segment_tokens = 96;
  config.cluster.window_tokens = 24;
  config.cluster.sink_tokens = 4;
  config.select.budget_tokens = 32;
  config.select.dense_layers = 0;
  config.select.dense_threshold = 0;
  config.max_sequences = 4;
  config.max_tokens = 2048;
  return config;
}

AlignedBytes aligned_bytes(std::size_t bytes) {
  return AlignedBytes(new (std::align_val_t{64}) std::byte[bytes]);
}

TensorView view3(const std::vector<float>& data, std::int64_t rows, std::int64_t heads,
                 std::int64_t dim) {
  return contiguous_view(data.data(), DType::kF32, {rows, heads, dim});
}

AttentionOut make_out(Output& output, std::int64_t rows, std::int64_t heads, std::int64_t dim) {
  output.out.assign(static_cast<std::size_t>(rows * heads * dim), -7.0F);
  output.lse.assign(static_cast<std::size_t>(rows * heads), -7.0F);
  return {view3(output.out, rows, heads, dim),
          contiguous_view(output.lse.data(), DType::kF32, {rows, heads})};
}

Choice copy_choice(const Selection& selection) {
  Choice choice;
  const auto& shape = selection.cluster_ids.shape;
  const auto* ids = static_cast<const std::int32_t*>(selection.cluster_ids.data);
  const auto* counts = static_cast<const std::int32_t*>(selection.row_counts.data);
  for (std::int64_t row = 0; row < shape[0]; ++row) {
    choice.lists.emplace_back();
    for (std::int64_t head = 0; head < shape[1]; ++head) {
      choice.lists.back().emplace_back();
      const std::int64_t list = (row * shape[1] + head) * shape[2];
      for (std::int64_t i = list; i < list + shape[2] && ids[i] >= 0; ++i) {
        choice.lists.back().back().push_back({ids[i], counts[i]});
      }
    }
  }
  return choice;
}

}  // namespace clusterkv::testing
