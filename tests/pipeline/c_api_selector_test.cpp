// SPDX-License-Identifier: Apache-2.0
//
// ClusterSelector through the C API: the same choices, lists, tails and bytes.
#include <algorithm>

#include "tests/pipeline/lineage.hpp"
#include "tests/support/c_cache.hpp"

namespace clusterkv::testing {
namespace {

/// A selector of the C API beside one of the C++ API, which makes the tokens of both.
class CApiSelector : public ::testing::Test {
 protected:
  CApiSelector() : d_(config_of(Residency::kDevice)) {
    const ckv_config config = c_config(d_.cache.config());
    c_call([&](ckv_error* e) { return ckv_selector_create(&config, nullptr, &selector_, e); });
    c_call([&](ckv_error* e) { return ckv_selector_add_sequence(selector_, &id_, e); });
    EXPECT_EQ(d_.add(1), SequenceId{id_});
  }
  ~CApiSelector() override {
    EXPECT_EQ(ckv_plan_destroy(plan_, nullptr), CKV_OK);
    EXPECT_EQ(ckv_selector_destroy(selector_, nullptr), CKV_OK);
  }

  void step(std::int64_t id, int tokens, Phase phase, int queries = 1) {
    const std::vector<StepRow> rows = {{SequenceId{id}, tokens, queries, phase}};
    d_.begin(rows);
    const std::vector<ckv_step_row> c = c_rows(rows);
    if (plan_ == nullptr) {
      make_plan(c);
    } else {
      c_call([&](ckv_error* e) {
        return ckv_selector_update(selector_, plan_, c.data(), c.size(), nullptr, e);
      });
    }
    for (int layer = 0; layer < 2; ++layer) {
      const auto [key, value] = d_.new_rows(layer);
      d_.append(layer);
      const ckv_layer_call call = at(layer);
      c_call([&](ckv_error* e) {
        return ckv_selector_append(selector_, &call, CTensor(d_.kv_view(key)),
                                   CTensor(d_.kv_view(value)), e);
      });
    }
  }
  void make_plan(const std::vector<ckv_step_row>& rows) {
    const PlanLimits limits{4, 1024, 0};
    const ckv_plan_limits bounds = c_limits(limits);
    auto needs = c_struct<ckv_memory_needs>();
    const ckv_config config = c_config(d_.cache.config());
    c_call([&](ckv_error* e) {
      return ckv_selector_memory_needs(&config, CKV_BACKEND_CPU, &bounds, &needs, e);
    });
    EXPECT_EQ(
        needs.workspace_bytes,
        ClusterSelector::memory_needs(d_.cache.config(), Backend::kCpu, limits).workspace_bytes);
    memory_ = aligned_bytes(needs.workspace_bytes);
    const ckv_workspace workspace{sizeof workspace, memory_.get(), needs.workspace_bytes, nullptr,
                                  0};
    const ckv_plan_args args{sizeof args, rows.data(), rows.size(), &bounds, &workspace};
    c_call([&](ckv_error* e) { return ckv_selector_plan(selector_, &args, nullptr, &plan_, e); });
  }
  ckv_layer_call at(int layer) const { return {sizeof(ckv_layer_call), plan_, nullptr, layer, 0}; }

  /// select(), token_ids(), attend_tail() and to_paged() of both.
  void compare_choices() {
    const std::vector<float> query = d_.queries(1);
    const Selection wanted = d_.select(1);
    const ckv_layer_call call = at(1);
    auto got = c_struct<ckv_selection>();
    c_call([&](ckv_error* e) {
      return ckv_selector_select(selector_, &call, CTensor(d_.query_view(query)), &got, e);
    });
    EXPECT_EQ(copy_choice({view_of(got.cluster_ids), view_of(got.row_counts)}),
              copy_choice(wanted));
    std::vector<std::int32_t> ids(2 * 2048), counts(2);
    const auto id_view = contiguous_view(ids.data(), DType::kI32, {1, 2, 2048});
    const auto count_view = contiguous_view(counts.data(), DType::kI32, {1, 2});
    c_call([&](ckv_error* e) {
      return ckv_selector_token_ids(selector_, &call, &got, CTensor(id_view), CTensor(count_view),
                                    e);
    });
    const auto positions = d_.positions(1, wanted);
    for (std::size_t head = 0; head < 2; ++head) {
      const auto first = ids.begin() + static_cast<int>(head) * 2048;
      EXPECT_EQ(std::vector(first, first + counts[head]), positions[0][head]);
    }
    compare_tails(wanted, call, got, query);
    compare_pages(wanted, call, got);
  }
  void compare_tails(const Selection& selection, const ckv_layer_call& call,
                     const ckv_selection& c_selection, const std::vector<float>& query) {
    Output wanted, got;
    d_.cache.attend_tail(1, d_.plan, selection, d_.query_view(query), make_out(wanted, 1, 6, 64));
    const CAttendArgs args({d_.query_view(query), make_out(got, 1, 6, 64)});
    c_call([&](ckv_error* e) {
      return ckv_selector_attend_tail(selector_, &call, &c_selection, &args.args, e);
    });
    EXPECT_TRUE(same_bits({got}, {wanted}));
    ckv_attend_args more = args.args;
    const std::vector<float> sinks(6);
    const CTensor logits(contiguous_view(sinks.data(), DType::kF32, {6}));
    more.sink_logits = logits;
    EXPECT_EQ(ckv_selector_attend_tail(selector_, &call, &c_selection, &more, nullptr),
              CKV_SHAPE_ERROR);
  }
  void compare_pages(const Selection& selection, const ckv_layer_call& call,
                     const ckv_selection& c_selection) {
    std::vector<std::int32_t> table(200), lists[2], starts[2];
    for (int i = 0; i < 200; ++i) table[static_cast<std::size_t>(i)] = 3 * i;
    for (auto& list : lists) list.assign(2000, -5);
    for (auto& start : starts) start.assign(3, -5);
    const auto view = [](const std::vector<std::int32_t>& data) {
      return contiguous_view(data.data(), DType::kI32, {static_cast<std::int64_t>(data.size())});
    };
    const TensorView blocks = contiguous_view(table.data(), DType::kI32, {1, 200});
    d_.cache.to_paged(1, d_.plan, selection, blocks, 16, view(starts[0]), view(lists[0]));
    const CTensor b(blocks), p(view(starts[1])), i(view(lists[1]));
    const ckv_paged_target target{sizeof target, b, p, i, 16, 0};
    c_call([&](ckv_error* e) {
      return ckv_selector_to_paged(selector_, &call, &c_selection, &target, e);
    });
    EXPECT_EQ(starts[1], starts[0]);
    EXPECT_EQ(lists[1], lists[0]);
  }

  std::vector<std::byte> save(std::int64_t id) {
    std::vector<std::byte> bytes;
    auto writer = c_struct<ckv_writer>();
    writer.context = &bytes;
    writer.write = [](void* context, const void* data, size_t size) {
      const auto* first = static_cast<const std::byte*>(data);
      static_cast<std::vector<std::byte>*>(context)->insert(
          static_cast<std::vector<std::byte>*>(context)->end(), first, first + size);
      return 0;
    };
    c_call([&](ckv_error* e) { return ckv_selector_save(selector_, id, &writer, nullptr, e); });
    return bytes;
  }
  std::int64_t load(const std::vector<std::byte>& bytes) {
    std::span<const std::byte> left(bytes);
    auto reader = c_struct<ckv_reader>();
    reader.context = &left;
    reader.read = [](void* context, void* to, size_t size) {
      auto& from = *static_cast<std::span<const std::byte>*>(context);
      const std::size_t count = std::min(size, from.size());
      std::copy_n(from.begin(), count, static_cast<std::byte*>(to));
      from = from.subspan(count);
      return static_cast<std::int64_t>(count);
    };
    std::int64_t id = -1;
    c_call([&](ckv_error* e) { return ckv_selector_load(selector_, &reader, nullptr, &id, e); });
    return id;
  }
  std::int64_t length(std::int64_t id) {
    std::int64_t length = -1;
    c_call([&](ckv_error* e) { return ckv_selector_length(selector_, id, &length, e); });
    return length;
  }

  Driver<ClusterSelector> d_;
  ckv_selector* selector_ = nullptr;
  ckv_plan* plan_ = nullptr;
  std::int64_t id_ = -1;
  AlignedBytes memory_;
};

TEST_F(CApiSelector, AWholeLifeHasTheBitsOfTheCppApi) {
  step(id_, 300, Phase::kPrefillLast);
  for (int i = 0; i < 40; ++i) step(id_, 1, Phase::kDecode);
  compare_choices();
  std::int64_t child = -1;
  c_call([&](ckv_error* e) { return ckv_selector_fork(selector_, id_, -1, nullptr, &child, e); });
  EXPECT_EQ(d_.fork(SequenceId{id_}), SequenceId{child});
  c_call([&](ckv_error* e) { return ckv_selector_truncate(selector_, id_, 292, nullptr, e); });
  d_.cache.truncate(SequenceId{id_}, 292);
  EXPECT_EQ(length(id_), 292);
  step(id_, 3, Phase::kDecode);
  compare_choices();
  c_call([&](ckv_error* e) { return ckv_selector_remove(selector_, id_, nullptr, e); });
  EXPECT_EQ(length(child), 340);
  const std::vector<std::byte> bytes = save(child);
  std::vector<std::byte> wanted;
  d_.cache.save(SequenceId{child}, [&](std::span<const std::byte> part) {
    wanted.insert(wanted.end(), part.begin(), part.end());
  });
  EXPECT_EQ(bytes, wanted);
  EXPECT_EQ(length(load(bytes)), 340);
  auto stats = c_struct<ckv_stats>();
  EXPECT_EQ(ckv_selector_stats(selector_, &stats, nullptr), CKV_OK);
  EXPECT_EQ(stats.live_sequences, 2);
  EXPECT_EQ(stats.kmeans_tokens, d_.cache.stats().kmeans_tokens);
  auto config = c_struct<ckv_config>();
  EXPECT_EQ(ckv_selector_config(selector_, &config, nullptr), CKV_OK);
  EXPECT_EQ(config.segment_tokens, 96);
}

}  // namespace
}  // namespace clusterkv::testing
