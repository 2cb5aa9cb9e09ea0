// SPDX-License-Identifier: Apache-2.0
//
// Rows, plans, values and ranges that make no sense are refused, with a message that names the
// argument, the value and what was expected; and the object goes on as if nothing had happened.
// Tensors: entry_points_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "tests/support/errors.hpp"
#include "tests/support/harness.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::testing {
namespace {

/// A cache with one sequence of some length, and its twin that never sees a bad call.
class BadCall : public ::testing::Test {
 protected:
  BadCall() : config_(small_config(small_model(2))), h_(config_, limits_), twin_(config_, limits_) {
    id_ = h_.cache.add_sequence();
    twin_.cache.add_sequence();
    good_step(150, Phase::kPrefillLast);
    good_step(1, Phase::kDecode);
  }

  /// After each test: both answer the same bits.
  void TearDown() override {
    if (planned_) finish_step();
    good_step(1, Phase::kDecode);
    EXPECT_EQ(h_.attend(1, query_), twin_.attend(1, query_));
  }

  void good_step(int tokens, Phase phase) {
    plan_step(tokens, phase);
    finish_step();
  }
  void plan_step(int tokens, Phase phase) {
    const std::vector<StepRow> rows = {{id_, tokens, 1, phase, 0}};
    h_.begin(rows);
    twin_.begin(rows);
    planned_ = true;
    draw();
  }
  void finish_step() {
    for (int layer = next_layer_; layer < 2; ++layer) append(layer);
    planned_ = false;
    next_layer_ = 0;
  }
  void append(int layer) {
    h_.append(layer, key_, value_);
    twin_.append(layer, key_, value_);
    next_layer_ = layer + 1;
  }
  void draw() {
    const auto count = static_cast<std::size_t>(h_.plan.num_new_tokens() * 2 * 64);
    key_ = random_.normals(count);
    value_ = random_.normals(count);
    query_ = random_.normals(4 * 64, 2.0F);
  }
  void expect_plan_error_shape(StepRow row, const std::string& part) {
    expect_error<ShapeError>([&] { h_.cache.update(h_.plan, {&row, 1}); }, part);
  }

  PlanLimits limits_{3, 400, 64};
  CacheConfig config_;
  Harness<ClusterKVCache> h_;
  Harness<ClusterKVCache> twin_;
  SequenceId id_{};
  Random random_{3};
  std::vector<float> key_, value_, query_;
  bool planned_ = false;
  int next_layer_ = 0;
};

TEST_F(BadCall, PlanRefusesRows) {
  expect_plan_error_shape({id_, 0}, "num_new_tokens 0");
  expect_plan_error_shape({id_, -5}, "num_new_tokens -5");
  expect_plan_error_shape({id_, 1, 2}, "num_query_tokens 2");
  expect_plan_error_shape({id_, 1, -1}, "num_query_tokens -1");
  expect_plan_error_shape({id_, 1, 1, Phase{7}}, "phase 7");
  expect_plan_error_shape({id_, 1, 1, Phase::kDecode, 65}, "budget_tokens 65");
  expect_plan_error_shape({id_, 1, 1, Phase::kDecode, -1}, "budget_tokens -1");
  expect_error<ShapeError>([&] { h_.cache.update(h_.plan, {}); }, "0 of them");
  const std::vector<StepRow> twice = {{id_}, {}, {id_}};
  expect_error<ShapeError>([&] { h_.cache.update(h_.plan, twice); }, "rows 0 and 2");
  const std::vector<StepRow> many(4);
  expect_error<ShapeError>([&] { h_.cache.update(h_.plan, many); }, "limits.max_rows");
}

TEST_F(BadCall, PlanRefusesUnknownSequences) {
  for (const SequenceId id : {SequenceId{77}, SequenceId{-5}}) {
    const StepRow row{id};
    expect_error<UnknownSequence>([&] { h_.cache.update(h_.plan, {&row, 1}); }, "is not live");
    expect_error<UnknownSequence>([&] { h_.cache.remove(id); }, "is not live");
    expect_error<UnknownSequence>([&] { (void)h_.cache.length(id); }, "is not live");
  }
}

TEST_F(BadCall, RemovedSequencesAreRefused) {
  const SequenceId gone = h_.cache.add_sequence();
  ASSERT_EQ(twin_.cache.add_sequence(), gone);
  h_.cache.remove(gone);
  twin_.cache.remove(gone);
  const StepRow row{gone};
  const std::string part = "sequence " + std::to_string(static_cast<long long>(gone));
  expect_error<UnknownSequence>([&] { h_.cache.update(h_.plan, {&row, 1}); }, part);
  expect_error<UnknownSequence>(
      [&] {
        (void)h_.cache.plan({&row, 1}, limits_, h_.workspace());
      },
      part);
  expect_error<UnknownSequence>([&] { h_.cache.remove(gone); }, part);
  expect_error<UnknownSequence>([&] { (void)h_.cache.length(gone); }, part);
  const std::vector<float> rows(2 * 64);
  const TensorView view = view3(rows, 1, 2, 64);
  expect_error<UnknownSequence>([&] { h_.cache.read_rows(0, gone, 0, 1, view, view); }, part);
}

TEST_F(BadCall, PlanRefusesMoreThanThereIsRoomFor) {
  StepRow row{id_, 401};
  expect_error<CapacityError>([&] { h_.cache.update(h_.plan, {&row, 1}); }, "max_new_tokens");
  row.num_new_tokens = std::numeric_limits<int>::max();
  expect_error<CapacityError>([&] { h_.cache.update(h_.plan, {&row, 1}); }, "max_new_tokens");
  const PlanLimits wide{1, std::numeric_limits<int>::max(), 0};
  row.num_new_tokens = 1900;
  expect_error<CapacityError>(
      [&] {
        (void)h_.cache.plan({&row, 1}, wide, h_.workspace());
      },
      "max_tokens 2048");
}

TEST_F(BadCall, PlanRefusesLimitsAndWorkspaces) {
  const StepRow row{id_};
  const auto plan = [&](PlanLimits limits, Workspace workspace) {
    (void)h_.cache.plan({&row, 1}, limits, workspace);
  };
  expect_error<ShapeError>([&] { plan({0, 1, 0}, h_.workspace()); }, "limits.max_rows: 0");
  expect_error<ShapeError>([&] { plan({1, 0, 0}, h_.workspace()); }, "limits.max_new_tokens: 0");
  expect_error<ShapeError>([&] { plan({1, 1, -1}, h_.workspace()); }, "limits.max_budget_tokens");
  Workspace workspace = h_.workspace();
  workspace.bytes = 100;
  expect_error<CapacityError>([&] { plan(limits_, workspace); }, "workspace: 100 bytes");
  expect_error<CapacityError>([&] { plan(limits_, {}); }, "workspace: 0 bytes");
  workspace = h_.workspace();
  workspace.data = static_cast<std::byte*>(workspace.data) + 4;
  expect_error<CapacityError>([&] { plan(limits_, workspace); }, "aligned to 64");
}

TEST_F(BadCall, AddSequenceRefusesMoreThanMaxSequences) {
  std::vector<SequenceId> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(h_.cache.add_sequence());
  expect_error<CapacityError>([&] { h_.cache.add_sequence(); }, "max_sequences 4");
  for (const SequenceId id : ids) h_.cache.remove(id);
}

TEST_F(BadCall, MessagesNameArgumentValueAndWhatWasExpected) {
  plan_step(3, Phase::kDecode);
  const TensorView good = h_.kv_view(key_);
  const auto append = [&](TensorView key, TensorView value) {
    h_.cache.append(0, h_.plan, key, value);
  };
  TensorView bad = good;
  bad.shape[0] = 2;
  expect_error<ShapeError>([&] { append(bad, good); },
                           "key: shape [2, 2, 64] of rank 3, expected [3, 2, 64]");
  bad = good;
  bad.dtype = DType::kI32;
  expect_error<DTypeError>([&] { append(good, bad); },
                           "value: dtype i32, expected f32 or f16 or bf16");
}

TEST_F(BadCall, RowsAreNotReadBeforeTheyAreAppended) {
  plan_step(2, Phase::kDecode);
  append(0);
  std::vector<float> rows(2 * 64);
  const TensorView one = view3(rows, 1, 2, 64);
  expect_error<StepError>([&] { h_.cache.read_rows(1, id_, 0, 1, one, one); }, "not appended");
}

TEST_F(BadCall, StaleAndForeignPlansAreRefused) {
  expect_error<StepError>(
      [&] { h_.cache.append(0, twin_.plan, h_.kv_view(key_), h_.kv_view(key_)); },
      "of another object");
  expect_error<StepError>([&] { h_.cache.append(0, {}, {}, {}); }, "of another object");
  const StepRow row{id_};
  expect_error<StepError>([&] { h_.cache.update(twin_.plan, {&row, 1}); }, "of another object");

  const auto memory = aligned_bytes(h_.workspace().bytes);
  const SequenceId other = h_.cache.add_sequence();
  const StepRow other_row{other};
  DecodePlan old =
      h_.cache.plan({&other_row, 1}, limits_, {memory.get(), h_.workspace().bytes, nullptr, 0});
  h_.cache.remove(other);
  const TensorView one = view3(key_, 1, 2, 64);
  expect_error<StepError>([&] { h_.cache.append(0, old, one, one); }, "was removed");
}

TEST(StalePlan, OfASequencePlannedAgainIsRefused) {
  const CacheConfig config = small_config(small_model());
  const PlanLimits limits{1, 8, 0};
  Harness<ClusterKVCache> h(config, limits);
  const std::vector<StepRow> rows = {{h.cache.add_sequence(), 4}};
  const std::vector<float> key(4 * 2 * 64, 0.5F);
  h.begin(rows);
  h.append(0, key, key);
  const auto memory = aligned_bytes(h.workspace().bytes);
  const DecodePlan newer =
      h.cache.plan(rows, limits, {memory.get(), h.workspace().bytes, nullptr, 0});
  expect_error<StepError>([&] { h.append(0, key, key); }, "planned again");
  h.cache.append(0, newer, h.kv_view(key), h.kv_view(key));
}

TEST_F(BadCall, SelectionsAreChecked) {
  const TensorView query = h_.query_view(query_);
  Output output;
  const AttentionOut out = make_out(output, 1, 4, 64);
  const auto attend = [&](std::vector<std::int32_t> ids, std::vector<std::int32_t> counts) {
    const auto n = static_cast<std::int64_t>(ids.size()) / 2;
    h_.cache.attend_selected(0, h_.plan,
                             {contiguous_view(ids.data(), DType::kI32, {1, 2, n}),
                              contiguous_view(counts.data(), DType::kI32, {1, 2, n})},
                             {query, out});
  };
  attend({0, 1, 0, -1}, {1, 1, 1, 0});  // a good one
  expect_error<ValueError>([&] { attend({1, 0, 0, -1}, {1, 1, 1, 0}); }, "0 after 1");
  expect_error<ValueError>([&] { attend({0, 0, 0, -1}, {1, 1, 1, 0}); }, "0 after 0");
  expect_error<ValueError>([&] { attend({0, 9999, 0, -1}, {1, 1, 1, 0}); }, "9999");
  expect_error<ValueError>([&] { attend({-3, -1, 0, -1}, {1, 1, 1, 0}); }, "-3");
  expect_error<ValueError>([&] { attend({0, -1, 0, -1}, {0, 0, 1, 0}); }, "takes 0 rows");
  expect_error<ValueError>([&] { attend({0, -1, 0, -1}, {999, 0, 1, 0}); }, "takes 999 rows");
  expect_error<ShapeError>(
      [&] {
        h_.cache.attend_selected(0, h_.plan, {}, {query, out});
      },
      "selection.cluster_ids");
  const Selection selection = h_.cache.select(0, h_.plan, query);
  std::vector<std::int32_t> ids(20), counts(2);
  expect_error<ShapeError>(
      [&] {
        h_.cache.token_ids(0, h_.plan, selection,
                           contiguous_view(ids.data(), DType::kI32, {1, 2, 10}),
                           contiguous_view(counts.data(), DType::kI32, {1, 2}));
      },
      "ids: 10 entries a list, expected at least");
}

TEST_F(BadCall, ReadRowsRefusesRanges) {
  std::vector<float> rows(3 * 2 * 64);
  const TensorView three = view3(rows, 3, 2, 64);
  const auto read = [&](std::int64_t first, std::int64_t last) {
    h_.cache.read_rows(0, id_, first, last, three, three);
  };
  read(10, 13);
  expect_error<ShapeError>([&] { read(-1, 2); }, "first, last: -1, 2");
  expect_error<ShapeError>([&] { read(5, 2); }, "first, last: 5, 2");
  expect_error<ShapeError>([&] { read(149, 152); }, "<= 151");
}

TEST(CheckFinite, RefusesKeysAndValues) {
  CacheConfig config = small_config(small_model());
  config.check_finite = true;
  Harness<ClusterKVCache> h(config, {1, 8, 0});
  h.begin({{h.cache.add_sequence(), 4}});
  std::vector<float> good(4 * 2 * 64, 0.5F);
  for (const float value : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> bad = good;
    bad[300] = value;
    expect_error<ValueError>([&] { h.append(0, bad, good); }, "key: NaN or infinity");
    expect_error<ValueError>([&] { h.append(0, good, bad); }, "value: NaN or infinity");
  }
  h.append(0, good, good);
}

/// Without check_finite a NaN may spoil its own sequence and KV head, nothing else.
TEST(NonFinite, SpoilsNobodyElse) {
  const CacheConfig config = small_config(small_model());
  Random random(1);
  std::vector<float> clean = random.normals(2 * 200 * 2 * 64);
  std::vector<float> spoilt = clean;
  for (std::size_t i = 0; i < spoilt.size() / 2; i += 128) spoilt[i + 5] = NAN;  // head 0 of row 0
  std::vector<Output> outputs;
  for (const auto* key : {&clean, &spoilt}) {
    Harness<ClusterKVCache> h(config, {2, 400, 0});
    const SequenceId a = h.cache.add_sequence();
    const SequenceId b = h.cache.add_sequence();
    h.begin({{a, 200, 0, Phase::kPrefillLast}, {b, 200, 0, Phase::kPrefillLast}});
    h.append(0, *key, *key);
    h.begin({{a}, {b}});
    h.append(0, std::vector<float>(2 * 2 * 64, 0.1F), std::vector<float>(2 * 2 * 64, 0.1F));
    outputs.push_back(h.attend(0, std::vector<float>(2 * 4 * 64, 0.3F)));
  }
  for (std::size_t i = 2 * 64; i < outputs[0].out.size(); ++i) {  // all but KV head 0 of row 0
    EXPECT_EQ(outputs[0].out[i], outputs[1].out[i]);
  }
}

}  // namespace
}  // namespace clusterkv::testing
