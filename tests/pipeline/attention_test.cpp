// SPDX-License-Identifier: Apache-2.0
//
// dense_decode, sparse_decode and merge_states against fp64 sums.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "clusterkv/attention.hpp"
#include "kernels/common/numeric.hpp"
#include "tests/reference/attend.hpp"
#include "tests/support/harness.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::testing {
namespace {

struct Shape {
  int rows, tokens, q_heads, kv_heads, head_dim;
  DType dtype;
  int value_dim = head_dim;
};

/// Tensors of a shape, in its dtype, and the same numbers as floats.
struct Inputs {
  Inputs(const Shape& s, std::uint64_t seed) : shape(s) {
    Random random(seed);
    query = random.normals(static_cast<std::size_t>(s.rows * s.q_heads * s.head_dim));
    const int vectors = s.rows * s.tokens * s.kv_heads;
    key = store(random.normals(static_cast<std::size_t>(vectors * s.head_dim)), wide_key);
    value = store(random.normals(static_cast<std::size_t>(vectors * s.value_dim)), wide_value);
  }

  std::vector<std::byte> store(const std::vector<float>& from, std::vector<float>& wide) const {
    std::vector<std::byte> bytes(from.size() * size_of(shape.dtype));
    wide = from;
    const int count = static_cast<int>(from.size());
    if (shape.dtype == DType::kF32) store_elements<DType::kF32>(from.data(), count, bytes.data());
    if (shape.dtype == DType::kF16) {
      store_elements<DType::kF16>(from.data(), count, bytes.data());
      load_elements<DType::kF16>(bytes.data(), count, wide.data());
    }
    if (shape.dtype == DType::kBF16) {
      store_elements<DType::kBF16>(from.data(), count, bytes.data());
      load_elements<DType::kBF16>(bytes.data(), count, wide.data());
    }
    return bytes;
  }
  DecodeArgs args() const {
    const auto kv = [&](const std::vector<std::byte>& data, int dim) {
      return contiguous_view(data.data(), shape.dtype,
                             {shape.rows, shape.tokens, shape.kv_heads, dim});
    };
    return {.query = view3(query, shape.rows, shape.q_heads, shape.head_dim),
            .key = kv(key, shape.head_dim),
            .value = kv(value, shape.value_dim),
            .logit_softcap = softcap};
  }
  /// fp64 attention of one row and query head over the tokens given.
  Output attend(int row, int q_head, const std::vector<int>& tokens) const {
    const int kv_head = q_head / (shape.q_heads / shape.kv_heads);
    const float* q = query.data() + (row * shape.q_heads + q_head) * shape.head_dim;
    std::vector<double> logits;
    double max = -INFINITY;
    for (const int token : tokens) {
      const float* k = wide_key.data() + at(row, token, kv_head) * shape.head_dim;
      const double logit =
          std::inner_product(q, q + shape.head_dim, k, 0.0) / std::sqrt(shape.head_dim);
      const double z = reference::soft_capped(logit, double{softcap});
      logits.push_back(z);
      max = std::max(max, z);
    }
    double sum = 0;
    std::vector<double> out(static_cast<std::size_t>(shape.value_dim));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const double e = std::exp(logits[i] - max);
      sum += e;
      const float* v = wide_value.data() + at(row, tokens[i], kv_head) * shape.value_dim;
      for (std::size_t d = 0; d < out.size(); ++d) out[d] += e * v[d];
    }
    Output result;
    for (const double x : out) result.out.push_back(static_cast<float>(sum > 0 ? x / sum : 0));
    result.lse.push_back(static_cast<float>(sum > 0 ? max + std::log(sum) : -INFINITY));
    return result;
  }
  std::ptrdiff_t at(int row, int token, int kv_head) const {
    return (std::ptrdiff_t{row} * shape.tokens + token) * shape.kv_heads + kv_head;
  }

  Shape shape;
  float softcap = 0;
  std::vector<float> query, wide_key, wide_value;
  std::vector<std::byte> key, value;
};

/// fp32 sums over a few thousand terms of size one: 1e-5 leaves a factor of ten.
void expect_close(const Output& output, std::size_t head, const Output& wanted) {
  const std::size_t dim = wanted.out.size();
  for (std::size_t d = 0; d < dim; ++d) {
    ASSERT_NEAR(output.out[head * dim + d], wanted.out[d], 1e-5);
  }
  if (std::isinf(wanted.lse[0])) {
    ASSERT_EQ(output.lse[head], wanted.lse[0]);
  } else {
    ASSERT_NEAR(output.lse[head], wanted.lse[0], 1e-5 * std::max(1.0F, std::abs(wanted.lse[0])));
  }
}

class Decode : public ::testing::TestWithParam<Shape> {};

TEST_P(Decode, DenseMatchesReference) {
  const Shape s = GetParam();
  Inputs in(s, 1);
  in.softcap = s.q_heads == 6 || s.q_heads == 32 ? 1.5F : 0.0F;
  std::vector<std::int32_t> lengths;
  for (int row = 0; row < s.rows; ++row) lengths.push_back(row == 1 ? 0 : s.tokens - row);
  DecodeArgs args = in.args();
  args.lengths = contiguous_view(lengths.data(), DType::kI32, {s.rows});
  Output output;
  const auto pool = make_thread_pool(2);
  dense_decode(args, make_out(output, s.rows, s.q_heads, s.value_dim),
               {Backend::kCpu, nullptr, pool.get()});
  for (int row = 0; row < s.rows; ++row) {
    std::vector<int> tokens(static_cast<std::size_t>(lengths[static_cast<std::size_t>(row)]));
    std::iota(tokens.begin(), tokens.end(), 0);
    for (int head = 0; head < s.q_heads; ++head) {
      expect_close(output, static_cast<std::size_t>(row * s.q_heads + head),
                   in.attend(row, head, tokens));
    }
  }
}

TEST_P(Decode, SparseMatchesReferenceForLists) {
  const Shape s = GetParam();
  Inputs in(s, 2);
  in.softcap = s.q_heads == 5 || s.q_heads == 18 ? 1.5F : 0.0F;
  for (const int heads : {s.kv_heads, s.q_heads}) {
    Random random(4);
    std::vector<std::int32_t> ids, counts;
    std::vector<std::vector<int>> lists;
    for (int list = 0; list < s.rows * heads; ++list) {
      const int count = list == 1 ? 0 : random.between(1, 90);
      std::vector<int> tokens;
      for (int i = 0; i < count; ++i) tokens.push_back(random.between(0, s.tokens - 1));
      counts.push_back(count);
      ids.insert(ids.end(), tokens.begin(), tokens.end());
      ids.resize(static_cast<std::size_t>((list + 1) * 90), -99);  // never read
      lists.push_back(tokens);
    }
    Output output;
    sparse_decode(in.args(), contiguous_view(ids.data(), DType::kI32, {s.rows, heads, 90}),
                  contiguous_view(counts.data(), DType::kI32, {s.rows, heads}),
                  make_out(output, s.rows, s.q_heads, s.value_dim));
    for (int row = 0; row < s.rows; ++row) {
      for (int head = 0; head < s.q_heads; ++head) {
        const int list = row * heads + head / (s.q_heads / heads);
        expect_close(output, static_cast<std::size_t>(row * s.q_heads + head),
                     in.attend(row, head, lists[static_cast<std::size_t>(list)]));
      }
    }
  }
}

TEST_P(Decode, PartsMergeToTheWhole) {
  const Shape s = GetParam();
  const Inputs in(s, 3);
  Output whole, merged;
  dense_decode(in.args(), make_out(whole, s.rows, s.q_heads, s.value_dim));
  for (const std::vector<int>& cuts :
       {std::vector<int>{0, 1, 100, s.tokens}, std::vector<int>{0, 50, 50, s.tokens}}) {
    std::vector<Output> outputs(cuts.size() - 1);
    std::vector<AttentionOut> parts;
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      DecodeArgs args = in.args();
      for (TensorView* t : {&args.key, &args.value}) {
        t->data = static_cast<std::byte*>(t->data) +
                  static_cast<std::size_t>(cuts[i] * t->stride[1]) * size_of(s.dtype);
        t->shape[1] = cuts[i + 1] - cuts[i];
      }
      parts.push_back(make_out(outputs[i], s.rows, s.q_heads, s.value_dim));
      dense_decode(args, parts.back());
    }
    merge_states(parts, make_out(merged, s.rows, s.q_heads, s.value_dim));
    for (std::size_t i = 0; i < whole.out.size(); ++i) {
      ASSERT_NEAR(merged.out[i], whole.out[i], 2e-6);
    }
    for (std::size_t i = 0; i < whole.lse.size(); ++i) {
      ASSERT_NEAR(merged.lse[i], whole.lse[i], 1e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Decode,
                         ::testing::Values(Shape{1, 2100, 4, 1, 64, DType::kF32},
                                           Shape{2, 200, 6, 2, 80, DType::kF16},
                                           Shape{3, 130, 5, 5, 96, DType::kBF16, 256},
                                           Shape{2, 300, 32, 8, 128, DType::kBF16},
                                           Shape{2, 101, 18, 2, 256, DType::kF16},
                                           Shape{2, 111, 6, 3, 128, DType::kF32, 80},
                                           Shape{2, 150, 12, 1, 128, DType::kF32}));

TEST(DecodeStrides, HeadMajorGivesTheSameBits) {
  const Shape s{1, 90, 4, 2, 64, DType::kF32};
  const Inputs in(s, 9);
  std::vector<float> key(in.wide_key.size()), value(in.wide_value.size());
  for (int t = 0; t < s.tokens; ++t) {
    for (int h = 0; h < s.kv_heads; ++h) {
      const auto to = (std::ptrdiff_t{h} * s.tokens + t) * 64;
      std::copy_n(in.wide_key.begin() + in.at(0, t, h) * 64, 64, key.begin() + to);
      std::copy_n(in.wide_value.begin() + in.at(0, t, h) * 64, 64, value.begin() + to);
    }
  }
  DecodeArgs args = in.args();
  args.key.data = key.data();
  args.value.data = value.data();
  for (TensorView* t : {&args.key, &args.value}) {
    t->stride[1] = 64;
    t->stride[2] = s.tokens * 64;
  }
  Output token_major, head_major;
  dense_decode(in.args(), make_out(token_major, 1, 4, 64));
  dense_decode(args, make_out(head_major, 1, 4, 64));
  EXPECT_EQ(token_major, head_major);
}

TEST(DecodeRange, HugeLogitsDoNotOverflow) {
  const Shape s{1, 70, 2, 1, 64, DType::kF32};
  Inputs in(s, 5);
  for (float& x : in.query) x *= 3e4F;
  Output output;
  dense_decode(in.args(), make_out(output, 1, 2, 64));
  for (const float x : output.out) ASSERT_TRUE(std::isfinite(x));
  for (const float x : output.lse) ASSERT_TRUE(std::isfinite(x));
}

}  // namespace
}  // namespace clusterkv::testing
