// SPDX-License-Identifier: Apache-2.0
//
// ClusterSelector on the CUDA backend: its choices are the cache's, and its tail is what the engine's own
// part lacks.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/support/device_cache.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kPrompt = 150;

CacheConfig selector_config(HeadGrouping grouping = HeadGrouping::kShared) {
  CacheConfig config = device_config();
  config.select.grouping = grouping;
  return config;
}

class DeviceSelectorTest : public DeviceTest {};

/// attend_tail() of a layer.
Output tail_of(Driver<ClusterSelector>& driver, int layer, const Selection& selection,
               const std::vector<float>& query) {
  const ModelShape& m = driver.cache.config().model;
  Output rest;
  const AttentionOut out = make_out(rest, 1, m.num_q_heads, value_dim_of(m));
  driver.cache.attend_tail(layer, driver.plan, selection, driver.query_view(query),
                           {driver.placed(out.out), driver.placed(out.lse)},
                           driver.stream_or_own({}));
  driver.wait();
  return rest;
}

/// What an engine makes of the lists with its own kernel: on the host, over the tokens as they were given.
Output engine_part(Driver<ClusterSelector>& driver, int layer, SequenceId id,
                   const std::vector<float>& query,
                   const std::vector<std::vector<std::int32_t>>& lists) {
  const ModelShape& m = driver.cache.config().model;
  const std::int64_t length = driver.cache.length(id);
  const std::vector<float> keys = driver.all_keys(id, layer);
  const std::vector<float> values = driver.all_values(id, layer);
  const auto rows = [&](const std::vector<float>& data, int dim) {
    return contiguous_view(data.data(), DType::kF32, {1, length, m.num_kv_heads, dim});
  };
  std::vector<std::int32_t> ids, counts;
  for (const auto& list : lists) {
    counts.push_back(static_cast<std::int32_t>(list.size()));
    ids.insert(ids.end(), list.begin(), list.end());
    ids.resize(counts.size() * static_cast<std::size_t>(length), -1);
  }
  const auto heads = static_cast<std::int64_t>(lists.size());
  Output output;
  sparse_decode({.query = view3(query, 1, m.num_q_heads, m.head_dim),
                 .key = rows(keys, m.head_dim),
                 .value = rows(values, value_dim_of(m)),
                 .logit_softcap = m.logit_softcap},
                contiguous_view(ids.data(), DType::kI32, {1, heads, length}),
                contiguous_view(counts.data(), DType::kI32, {1, heads}),
                make_out(output, 1, m.num_q_heads, value_dim_of(m)));
  return output;
}

AttentionOut view_of(const Output& output, const ModelShape& m) {
  return {view3(output.out, 1, m.num_q_heads, value_dim_of(m)),
          contiguous_view(output.lse.data(), DType::kF32, {1, m.num_q_heads})};
}

TEST_F(DeviceSelectorTest, ItAndTheEngineMergeToTheCachesResult) {
  for (const auto& [grouping, softcap] : {std::pair{HeadGrouping::kShared, 0.0F},
                                          {HeadGrouping::kPerQueryHead, 0.0F},
                                          {HeadGrouping::kShared, 3.0F}}) {
    CacheConfig config = selector_config(grouping);
    config.model.logit_softcap = softcap;
    config.model.value_dim = softcap > 0 ? 96 : 0;
    OnDevice<ClusterKVCache> cache(config);
    OnDevice<ClusterSelector> device(config);
    const ModelShape& m = cache.driver.cache.config().model;
    Driver<ClusterSelector>& selector = device.driver;
    const SequenceId id = cache.driver.add(1);
    ASSERT_EQ(selector.add(1), id);
    cache.driver.prefill(id, kPrompt);
    selector.prefill(id, kPrompt);
    for (int step = 0; step < 14; ++step) {  // a window is sealed, and read
      const auto whole = cache.driver.decode(id);
      selector.begin({{.id = id}});
      for (int layer = 0; layer < m.num_layers; ++layer) {
        selector.append(layer);
        const std::vector<float> query = selector.queries(layer);
        const Selection selection = selector.select(layer);
        EXPECT_EQ(device.choice(selection), cache.choice(cache.driver.select(layer)));
        const Output rest = tail_of(selector, layer, selection, query);
        const Output part =
            engine_part(selector, layer, id, query, selector.positions(layer, selection)[0]);
        Output total;
        merge_states(std::vector<AttentionOut>{view_of(part, m), view_of(rest, m)},
                     make_out(total, 1, m.num_q_heads, value_dim_of(m)));
        const Output& wanted = whole[static_cast<std::size_t>(layer)];
        // The engine's rows are not rounded to f16.
        EXPECT_LT(relative_difference(total.out, wanted.out), 2e-3) << step << " " << layer;
        EXPECT_LT(relative_difference(total.lse, wanted.lse), 2e-3) << step << " " << layer;
        const bool has_rest = layer >= config.select.dense_layers;
        for (const float lse : rest.lse) EXPECT_EQ(std::isinf(lse), !has_rest);
      }
    }
  }
}

/// Pages of an engine's pool in no order.
std::int32_t page_of(std::int64_t row, std::int64_t column) {
  return static_cast<std::int32_t>((column * 7 + row * 3) % 41);
}

TEST_F(DeviceSelectorTest, ToPagedNamesTheTokensOfEachList) {
  constexpr int kBlock = 16;
  constexpr int kColumns = 20;
  OnDevice<ClusterSelector> device(selector_config());
  Driver<ClusterSelector>& d = device.driver;
  const SequenceId a = d.add(1);
  const SequenceId b = d.add(2);
  d.prefill(a, kPrompt);
  d.prefill(b, 200);
  d.begin({{.id = a}, {.id = kNoSequence}, {.id = b}});
  d.append_all();
  const int heads = d.cache.config().model.num_kv_heads;
  std::vector<std::int32_t> table;
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < kColumns; ++column) table.push_back(page_of(row, column));
  }
  for (int layer = 0; layer < 2; ++layer) {
    const Selection selection = d.select(layer);
    const auto positions = d.positions(layer, selection);
    std::vector<std::int32_t> starts_wanted = {0}, entries_wanted;
    for (int row = 0; row < 3; ++row) {
      for (int head = 0; head < heads; ++head) {
        for (const std::int32_t token :
             positions[static_cast<std::size_t>(row)][static_cast<std::size_t>(head)]) {
          const int slot = page_of(row, token / kBlock) * kBlock + token % kBlock;
          entries_wanted.push_back(slot * heads + head);
        }
        starts_wanted.push_back(static_cast<std::int32_t>(entries_wanted.size()));
      }
    }
    const auto paged = [&](std::size_t room, int columns) {
      std::vector<std::int32_t> starts(starts_wanted.size(), -7), entries(room, -7);
      TensorView pages = contiguous_view(table.data(), DType::kI32, {3, kColumns});
      pages.shape[1] = columns;
      d.cache.to_paged(
          layer, d.plan, selection, d.placed(pages), kBlock,
          d.placed(contiguous_view(starts.data(), DType::kI32,
                                   {static_cast<std::int64_t>(starts.size())})),
          d.placed(contiguous_view(entries.data(), DType::kI32, {static_cast<std::int64_t>(room)})),
          d.stream_or_own({}));
      d.wait();
      return std::pair{starts, entries};
    };
    const std::size_t all = entries_wanted.size();
    const auto [starts, entries] = paged(all + 2, kColumns);
    EXPECT_EQ(starts, starts_wanted);
    EXPECT_TRUE(std::equal(entries_wanted.begin(), entries_wanted.end(), entries.begin()));
    EXPECT_EQ(entries[all], -7) << "written past the last list";
    // Too little room: what there is room for.
    const std::size_t room = all / 2;
    const auto [short_starts, short_entries] = paged(room, kColumns);
    EXPECT_TRUE(std::equal(short_entries.begin(), short_entries.end(), entries_wanted.begin()));
    for (std::size_t i = 0; i < short_starts.size(); ++i) {
      EXPECT_EQ(short_starts[i], std::min(starts_wanted[i], static_cast<std::int32_t>(room)));
    }
    // Tokens without a page.
    const auto [few_starts, few_entries] = paged(all, 4);
    EXPECT_EQ(few_starts, starts_wanted);
    std::size_t at = 0;
    for (const auto& row : positions) {
      for (const auto& list : row) {
        for (const std::int32_t token : list) {
          EXPECT_EQ(few_entries[at], token < 4 * kBlock ? entries_wanted[at] : -1);
          ++at;
        }
      }
    }
  }
}

TEST_F(DeviceSelectorTest, ChoosesWithoutValues) {
  CacheConfig config = selector_config();
  OnDevice<ClusterSelector> without(config);
  OnDevice<ClusterSelector> with(config);
  std::vector<Choice> choices[2];
  for (const bool has_values : {false, true}) {
    OnDevice<ClusterSelector>& device = has_values ? with : without;
    Driver<ClusterSelector>& d = device.driver;
    const SequenceId id = d.add(1);
    const auto step = [&](const StepRow& row) {
      d.begin({row});
      for (int layer = 0; layer < 2; ++layer) {
        const auto [key, value] = d.new_rows(layer);
        d.cache.append(layer, d.plan, d.kv_view(key), has_values ? d.kv_view(value) : TensorView{},
                       d.stream_or_own({}));
        d.wait();  // key and value go
      }
    };
    step({id, kPrompt, 0, Phase::kPrefillLast});
    for (int i = 0; i < 14; ++i) {
      step({.id = id});
      choices[has_values ? 1 : 0].push_back(device.choice(d.select(1)));
    }
    Output rest;
    const std::vector<float> query = d.queries(1);
    const Selection selection = d.select(1);
    if (has_values) {
      tail_of(d, 1, selection, query);
    } else {
      expect_error<ConfigError>([&] { tail_of(d, 1, selection, query); }, "value");
    }
  }
  EXPECT_EQ(choices[0], choices[1]);
}

TEST_F(DeviceSelectorTest, ChecksWhatToPagedIsGiven) {
  OnDevice<ClusterSelector> device(selector_config());
  Driver<ClusterSelector>& d = device.driver;
  d.begin({{.id = d.add(1)}});
  d.append_all();
  const Selection selection = d.select(0);
  std::vector<std::int32_t> table(4), starts(3), entries(8);
  const TensorView pages = d.placed(contiguous_view(table.data(), DType::kI32, {1, 4}));
  const TensorView indptr = d.placed(contiguous_view(starts.data(), DType::kI32, {3}));
  const TensorView indices = d.placed(contiguous_view(entries.data(), DType::kI32, {8}));
  const auto call = [&](TensorView p, int block, TensorView s, TensorView e) {
    d.cache.to_paged(0, d.plan, selection, p, block, s, e, d.stream_or_own({}));
    d.wait();
  };
  call(pages, 16, indptr, indices);
  expect_error<ShapeError>([&] { call(pages, 0, indptr, indices); }, "block_tokens");
  TensorView bad = indptr;
  bad.shape[0] = 2;
  expect_error<ShapeError>([&] { call(pages, 16, bad, indices); }, "indptr");
  bad = indices;
  bad.device = {Device::kHost};
  expect_error<ShapeError>([&] { call(pages, 16, indptr, bad); }, "indices: lies in host memory");
  EXPECT_EQ(starts, (std::vector<std::int32_t>{0, 1, 2}));
}

}  // namespace
}  // namespace clusterkv::testing
