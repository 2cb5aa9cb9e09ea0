// SPDX-License-Identifier: Apache-2.0
#include "clusterkv/attention.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "kernels/attend/attend.hpp"
#include "src/runtime/check.hpp"
#include "src/runtime/check_config.hpp"
#include "src/runtime/parallel.hpp"

namespace clusterkv {
inline namespace v0 {
namespace {

using runtime::check_tensor;
using runtime::fail;
using runtime::kFloatTypes;
using runtime::LastStride;

/// Runs the tasks on the caller's thread.
class CallerThread final : public Executor {
 public:
  [[nodiscard]] int concurrency() const noexcept override { return 1; }
  void run(int num_tasks, void (*task)(void*, int), void* arg) override {
    for (int i = 0; i < num_tasks; ++i) task(arg, i);
  }
};

template <class Fn>
void run_on(const Stream& stream, int count, const Fn& fn) {
  CallerThread caller;
  Executor* executor = stream.executor != nullptr ? stream.executor : &caller;
  runtime::parallel_for(*executor, count, fn);
}

void check_stream(const Stream& stream) {
  if (stream.backend != Backend::kCpu) {
    fail<BackendUnavailable>("stream.backend: CUDA is not part of this version, expected kCpu");
  }
  cpu_isa();  // throws here, not in an executor's task
}

/// Tasks are numbered by int. A product of the two could overflow.
void check_rows_and_heads(const char* name, std::int64_t rows, std::int64_t heads) {
  constexpr std::int64_t kMost = 1 << 30;
  if (heads > kMost || (heads > 0 && rows > kMost / heads)) {
    fail<ShapeError>("{}: {} rows of {} heads, expected at most 2^30 together", name, rows, heads);
  }
}

std::int32_t read_i32(const TensorView& t, std::int64_t offset) {
  return static_cast<const std::int32_t*>(t.data)[offset];
}

void check_out(const AttentionOut& out, std::int64_t rows, std::int64_t heads,
               std::int64_t value_dim) {
  check_tensor(out.out, {"out", {rows, heads, value_dim}, kFloatTypes, LastStride::kOne});
  if (!out.lse.empty()) check_tensor(out.lse, {"lse", {rows, heads}, {DType::kF32}});
}

std::int64_t length_of(const DecodeArgs& args, std::int64_t row) {
  return args.lengths.empty() ? args.key.shape[1]
                              : read_i32(args.lengths, row * args.lengths.stride[0]);
}

void check_lengths(const DecodeArgs& args, std::int64_t rows) {
  if (args.lengths.empty()) return;
  check_tensor(args.lengths, {"lengths", {rows}, {DType::kI32}});
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t length = length_of(args, row);
    if (length < 0 || length > args.key.shape[1]) {
      fail<ValueError>("lengths: row {} has {}, expected 0 .. {}", row, length, args.key.shape[1]);
    }
  }
}

attend::DecodeParams check_decode(const DecodeArgs& args, const AttentionOut& out) {
  check_tensor(args.query, {"query", {-1, -1, -1}, kFloatTypes});
  const auto [rows, q_heads, head_dim] =
      std::array{args.query.shape[0], args.query.shape[1], args.query.shape[2]};
  check_tensor(args.key, {"key", {rows, -1, -1, head_dim}, kFloatTypes, LastStride::kOne});
  const std::int64_t kv_heads = args.key.shape[2];
  check_tensor(
      args.value,
      {"value", {rows, args.key.shape[1], kv_heads, -1}, {args.key.dtype}, LastStride::kOne});
  const std::int64_t value_dim = args.value.shape[3];
  if (!runtime::is_head_dim(head_dim)) {
    fail<ShapeError>("query: head_dim {}, expected 64, 80, 96, 128 or 256", head_dim);
  }
  if (!runtime::is_head_dim(value_dim)) {
    fail<ShapeError>("value: value_dim {}, expected 64, 80, 96, 128 or 256", value_dim);
  }
  if (kv_heads < 1 || q_heads < 1 || q_heads % kv_heads != 0) {
    fail<ShapeError>("query: {} heads, expected a multiple of key's {}", q_heads, kv_heads);
  }
  check_rows_and_heads("query", rows, q_heads);
  if (!std::isfinite(args.softmax_scale) || args.softmax_scale < 0.0F) {
    fail<ValueError>("softmax_scale: {}, expected finite and >= 0", args.softmax_scale);
  }
  if (!runtime::is_softcap(args.logit_softcap)) {
    fail<ValueError>("logit_softcap: {}, expected 0, or 1e-3 .. 1e6", args.logit_softcap);
  }
  check_out(out, rows, q_heads, value_dim);
  check_lengths(args, rows);
  const float scale = args.softmax_scale > 0.0F ? args.softmax_scale
                                                : 1.0F / std::sqrt(static_cast<float>(head_dim));
  return {.query = args.query,
          .key = args.key,
          .value = args.value,
          .lengths = args.lengths,
          .token_ids = {},
          .counts = {},
          .softmax_scale = scale,
          .out = out.out,
          .lse = out.lse,
          .logit_softcap = args.logit_softcap};
}

void check_ids(const DecodeArgs& args, const TensorView& ids, const TensorView& counts) {
  for (std::int64_t row = 0; row < ids.shape[0]; ++row) {
    for (std::int64_t head = 0; head < ids.shape[1]; ++head) {
      const std::int64_t count = read_i32(counts, row * counts.stride[0] + head * counts.stride[1]);
      if (count < 0 || count > ids.shape[2]) {
        fail<ValueError>("counts: row {}, head {} has {}, expected 0 .. {}", row, head, count,
                         ids.shape[2]);
      }
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t id =
            read_i32(ids, row * ids.stride[0] + head * ids.stride[1] + i * ids.stride[2]);
        if (id >= 0 && id < length_of(args, row)) continue;
        fail<ValueError>("token_ids: row {}, head {} has {}, expected 0 .. {}", row, head, id,
                         length_of(args, row) - 1);
      }
    }
  }
}

void decode(const attend::DecodeParams& params, const Stream& stream) {
  const int rows = static_cast<int>(params.query.shape[0]);
  const int heads =
      static_cast<int>(params.token_ids.empty() ? params.key.shape[2] : params.token_ids.shape[1]);
  run_on(stream, rows * heads,
         [&](int task) { attend::cpu().decode(params, task / heads, task % heads); });
}

}  // namespace

void dense_decode(const DecodeArgs& args, const AttentionOut& out, Stream stream) {
  check_stream(stream);
  decode(check_decode(args, out), stream);
}

void sparse_decode(const DecodeArgs& args, const TensorView& token_ids, const TensorView& counts,
                   const AttentionOut& out, Stream stream) {
  check_stream(stream);
  attend::DecodeParams params = check_decode(args, out);
  const std::int64_t rows = args.query.shape[0];
  check_tensor(token_ids, {"token_ids", {rows, -1, -1}, {DType::kI32}});
  const std::int64_t heads = token_ids.shape[1];
  if (heads != args.key.shape[2] && heads != args.query.shape[1]) {
    fail<ShapeError>("token_ids: {} heads, expected key's {} or query's {}", heads,
                     args.key.shape[2], args.query.shape[1]);
  }
  check_tensor(counts, {"counts", {rows, heads}, {DType::kI32}});
  check_ids(args, token_ids, counts);
  params.token_ids = token_ids;
  params.counts = counts;
  decode(params, stream);
}

void merge_states(std::span<const AttentionOut> parts, const AttentionOut& total, Stream stream) {
  check_stream(stream);
  if (parts.empty()) fail<ShapeError>("parts: 0 of them, expected at least 1");
  const TensorView& first = parts[0].out;
  check_tensor(first, {"parts[0].out", {-1, -1, -1}, kFloatTypes});
  const auto [rows, heads, value_dim] = std::array{first.shape[0], first.shape[1], first.shape[2]};
  if (value_dim > kMaxHeadDim) {
    fail<ShapeError>("parts[0].out: value_dim {}, expected at most {}", value_dim, kMaxHeadDim);
  }
  check_rows_and_heads("parts[0].out", rows, heads);
  check_out(total, rows, heads, value_dim);
  std::vector<TensorView> outs;
  std::vector<TensorView> lses;
  for (const AttentionOut& part : parts) {
    const std::string name = fmt::format("parts[{}]", outs.size());
    check_tensor(part.out, {(name + ".out").c_str(), {rows, heads, value_dim}, kFloatTypes});
    check_tensor(part.lse, {(name + ".lse").c_str(), {rows, heads}, {DType::kF32}});
    outs.push_back(part.out);
    lses.push_back(part.lse);
  }
  const attend::StateParams params{outs.data(), lses.data(), static_cast<int>(parts.size()),
                                   total.out, total.lse};
  const int num_heads = static_cast<int>(heads);
  run_on(stream, static_cast<int>(rows) * num_heads,
         [&](int task) { attend::cpu().merge_states(params, task / num_heads, task % num_heads); });
}

}  // namespace v0
}  // namespace clusterkv
