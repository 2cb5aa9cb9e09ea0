// SPDX-License-Identifier: Apache-2.0
//
// What the headers promise and no other suite holds: lengths of a choice, few tokens, dtypes and
// strides of the caller's tensors, exports of the selector.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "tests/support/cache_fixture.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::testing {
namespace {

TEST(Selection, IsTheBudgetExactlyOrAllThereIs) {
  Driver<ClusterKVCache> d(small_config(small_model()), {1, 256, 2048});
  const SequenceId id = d.add(1);
  d.prefill(id, 196);
  for (const int budget : {1, 2, 31, 32, 33, 100, 191, 192, 193, 2000}) {
    d.begin({{.id = id, .budget_tokens = budget}});
    d.append_all();
    const Selection selection = d.select(0);
    const Choice choice = copy_choice(selection);
    for (const auto& list : choice.lists[0]) {
      int rows = 0;
      for (std::size_t i = 0; i < list.size(); ++i) {
        rows += list[i].rows;
        if (i > 0) {
          EXPECT_LT(list[i - 1].cluster, list[i].cluster);
        }
      }
      EXPECT_EQ(rows, std::min(budget, 192));
    }
    const auto positions = d.positions(0, selection);
    for (auto list : positions[0]) {
      std::sort(list.begin(), list.end());
      EXPECT_EQ(std::adjacent_find(list.begin(), list.end()), list.end()) << "a token twice";
    }
  }
}

TEST(Sinks, FewerTokensThanSinksAreAllAttended) {
  CacheConfig config = small_config(small_model());
  config.cluster.sink_tokens = 16;
  Driver<ClusterKVCache> d(config);
  const SequenceId id = d.add(1);
  for (int i = 0; i < 20; ++i) {
    const Output output = d.decode(id)[0];
    EXPECT_EQ(d.cache.stats().step.sink_tokens, 2 * std::min(i + 1, 16));
    const std::vector<float> key = d.all_keys(id, 0), value = d.all_values(id, 0);
    const auto view = [&](const std::vector<float>& rows) {
      return contiguous_view(rows.data(), DType::kF32, {1, i + 1, 2, 64});
    };
    Output dense;
    const std::vector<float> query = d.queries(0);
    dense_decode({view3(query, 1, 4, 64), view(key), view(value), {}, 0},
                 make_out(dense, 1, 4, 64));
    EXPECT_LT(relative_difference(output.out, dense.out), small_model_precision());
  }
}

TEST(Outputs, MayBeHalfPrecisionWithoutLse) {
  Driver<ClusterKVCache> d(small_config(small_model()));
  const SequenceId id = d.add(1);
  d.prefill(id, 200);
  const Output wide = d.decode(id)[0];
  std::vector<std::uint16_t> half(4 * 64);
  const std::vector<float> query = d.queries(0);
  d.cache.attend(
      0, d.plan,
      {d.query_view(query), {contiguous_view(half.data(), DType::kBF16, {1, 4, 64}), {}}});
  for (std::size_t i = 0; i < half.size(); ++i) {
    const float value = std::bit_cast<float>(std::uint32_t{half[i]} << 16);
    EXPECT_NEAR(value, wide.out[i], 0.005F * std::abs(wide.out[i]) + 1e-6F);
  }
}

TEST(Strides, OfKeysDoNotMatter) {
  const CacheConfig config = small_config(small_model());
  Random random(2);
  const std::vector<float> rows = random.normals(200 * 2 * 64);
  std::vector<float> transposed(rows.size());  // [dim, head, token]
  for (std::size_t t = 0; t < 200; ++t) {
    for (std::size_t h = 0; h < 2; ++h) {
      for (std::size_t d = 0; d < 64; ++d) {
        transposed[(d * 2 + h) * 200 + t] = rows[(t * 2 + h) * 64 + d];
      }
    }
  }
  TensorView view = view3(transposed, 200, 2, 64);
  view.stride = {1, 200, 400};
  std::vector<Output> outputs;
  for (const TensorView& tensor : {view3(rows, 200, 2, 64), view}) {
    Harness<ClusterKVCache> h(config, {1, 200, 0});
    h.begin({{h.cache.add_sequence(), 200, 1, Phase::kPrefillLast}});
    h.cache.append(0, h.plan, tensor, tensor);
    outputs.push_back(h.attend(0, std::vector<float>(4 * 64, 0.2F)));
  }
  EXPECT_EQ(outputs[0], outputs[1]);
}

TEST(ClusterSelector, WorksWithoutValuesButHasNoTail) {
  const CacheConfig config = small_config(small_model());
  Harness<ClusterSelector> h(config, {1, 300, 0});
  const SequenceId id = h.cache.add_sequence();
  Random random(1);
  h.begin({{id, 250, 0, Phase::kPrefillLast}});
  h.cache.append(0, h.plan, h.kv_view(random.normals(250 * 2 * 64)), {});
  h.begin({{id}});
  const std::vector<float> key = random.normals(2 * 64);
  EXPECT_THROW(h.append(0, key, key), ShapeError) << "values after none";
  h.cache.append(0, h.plan, h.kv_view(key), {});
  const std::vector<float> query = random.normals(4 * 64);
  const Selection selection = h.cache.select(0, h.plan, h.query_view(query));
  Output output;
  EXPECT_THROW(
      h.cache.attend_tail(0, h.plan, selection, h.query_view(query), make_out(output, 1, 4, 64)),
      ConfigError);
}

TEST(ClusterSelector, ExportsPagedRows) {
  Driver<ClusterSelector> d(small_config(small_model()));
  const SequenceId id = d.add(1);
  d.prefill(id, 250);
  d.begin({{.id = id}});
  d.append_all();
  const Selection selection = d.select(0);
  const auto positions = d.positions(0, selection);
  constexpr int kBlockTokens = 16;
  std::vector<std::int32_t> table;
  for (int i = 0; i < 16; ++i) table.push_back(100 + 7 * i);
  std::vector<std::int32_t> indptr(3), indices(200);
  const auto table_view = contiguous_view(table.data(), DType::kI32, {1, 16});
  const auto export_to = [&](const TensorView& blocks, std::int64_t room) {
    d.cache.to_paged(0, d.plan, selection, blocks, kBlockTokens,
                     contiguous_view(indptr.data(), DType::kI32, {3}),
                     contiguous_view(indices.data(), DType::kI32, {room}));
  };
  export_to(table_view, 200);
  for (std::size_t head = 0; head < 2; ++head) {
    const auto& list = positions[0][head];
    ASSERT_EQ(indptr[head + 1] - indptr[head], static_cast<int>(list.size()));
    for (std::size_t i = 0; i < list.size(); ++i) {
      const int slot = table[static_cast<std::size_t>(list[i] / kBlockTokens)] * kBlockTokens +
                       list[i] % kBlockTokens;
      EXPECT_EQ(indices[static_cast<std::size_t>(indptr[head]) + i],
                slot * 2 + static_cast<int>(head));
    }
  }
  EXPECT_THROW(export_to(table_view, 10), ShapeError);
  EXPECT_THROW(export_to(contiguous_view(table.data(), DType::kI32, {1, 3}), 200), ShapeError);
  table[0] = -1;
  EXPECT_THROW(export_to(table_view, 200), ValueError);
}

}  // namespace
}  // namespace clusterkv::testing
