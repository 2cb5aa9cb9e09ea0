// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/exact.hpp"

#include <cmath>

#include "clusterkv/attention.hpp"

namespace clusterkv::llama_cpp {

TensorView as_batch(const TensorView& rows) {
  TensorView batch = rows;
  batch.rank = 4;
  batch.shape = {1, rows.shape[0], rows.shape[1], rows.shape[2]};
  batch.stride = {0, rows.stride[0], rows.stride[1], rows.stride[2]};
  return batch;
}

void count_sinks(const TensorView& sink_logits, const AttentionOut& to) {
  if (sink_logits.empty()) return;
  for (std::int64_t head = 0; head < sink_logits.shape[0]; ++head) {
    const float sink = static_cast<const float*>(sink_logits.data)[head];
    const float lse = static_cast<const float*>(to.lse.data)[head];
    const float share = 1.0F / (1.0F + std::exp(sink - lse));
    float* row = static_cast<float*>(to.out.data) + head * to.out.stride[1];
    for (std::int64_t i = 0; i < to.out.shape[2]; ++i) row[i] *= share;
  }
}

void ExactAttention::attend(const Node& node, std::span<const MaskRow> rows,
                            std::span<const int> which, Stream stream) {
  const bool is_float = is_float_type(node.key().type);
  const auto kv_heads = static_cast<std::int64_t>(node.num_kv_heads());
  lse_.resize(static_cast<std::size_t>(node.num_q_heads()));
  for (const int index : which) {
    const MaskRow& row = rows[static_cast<std::size_t>(index)];
    const int local = node.local_stream(row.stream);
    const CacheRows::Run run{local, row.cells};
    DecodeArgs args{
        .query = node.query(index), .softmax_scale = node.scale(), .logit_softcap = node.softcap()};
    args.key =
        as_batch(is_float ? stream_view(node.key(), local) : keys_.view(node.key(), {&run, 1}));
    args.value = as_batch(is_float ? stream_view(node.value(), local)
                                   : values_.view(node.value(), {&run, 1}));
    const AttentionOut out{node.out(index),
                           contiguous_view(lse_.data(), DType::kF32, {1, node.num_q_heads()})};
    const auto count = static_cast<std::int32_t>(row.cells.size());
    const bool is_prefix = count == 0 || row.cells.back() == count - 1;
    if (!is_float || is_prefix) {
      args.lengths = contiguous_view(&count, DType::kI32, {1});
      dense_decode(args, out, stream);
      count_sinks(node.sink_logits(), out);
      continue;
    }
    TensorView ids = contiguous_view(row.cells.data(), DType::kI32, {1, kv_heads, count});
    TensorView counts = contiguous_view(&count, DType::kI32, {1, kv_heads});
    ids.stride[1] = 0;  // the same cells for all heads
    counts.stride[1] = 0;
    sparse_decode(args, ids, counts, out, stream);
    count_sinks(node.sink_logits(), out);
  }
}

}  // namespace clusterkv::llama_cpp
