// SPDX-License-Identifier: Apache-2.0
//
// Every entry point refuses what it must, with the right type and a message that names the argument,
// the value and what was expected; and the object goes on as if nothing had happened.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/support/harness.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::testing {
namespace {

template <class E>
void expect_error(const std::function<void()>& call, const std::string& part) {
  try {
    call();
    ADD_FAILURE() << "no error, expected one with: " << part;
  } catch (const E& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
        << error.what() << "\nlacks: " << part;
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another type of error: " << error.what();
  }
}

// ------------------------------------------------------------------------------------ config

struct ConfigFault {
  const char* field;
  std::function<void(CacheConfig&)> spoil;
};

std::vector<ConfigFault> config_faults() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  return {
      {"model.num_layers", [](CacheConfig& c) { c.model.num_layers = 0; }},
      {"model.num_kv_heads", [](CacheConfig& c) { c.model.num_kv_heads = -1; }},
      {"model.num_q_heads", [](CacheConfig& c) { c.model.num_q_heads = 5; }},
      {"model.head_dim", [](CacheConfig& c) { c.model.head_dim = 72; }},
      {"model.value_dim", [](CacheConfig& c) { c.model.value_dim = 128; }},
      {"model.kv_dtype", [](CacheConfig& c) { c.model.kv_dtype = DType::kI32; }},
      {"model.softmax_scale", [=](CacheConfig& c) { c.model.softmax_scale = nan; }},
      {"model.softmax_scale", [](CacheConfig& c) { c.model.softmax_scale = -1; }},
      {"model.softmax_scale", [](CacheConfig& c) { c.model.softmax_scale = INFINITY; }},
      {"model.logit_softcap", [](CacheConfig& c) { c.model.logit_softcap = 30; }},
      {"model.layers",
       [](CacheConfig& c) {
         c.model.layers = {1, 2, 3};
       }},
      {"model.layers", [](CacheConfig& c) { c.model.layers = {-1}; }},
      {"cluster.tokens_per_cluster", [](CacheConfig& c) { c.cluster.tokens_per_cluster = 0; }},
      {"cluster.segment_tokens", [](CacheConfig& c) { c.cluster.segment_tokens = -1; }},
      {"cluster.window_tokens", [](CacheConfig& c) { c.cluster.window_tokens = 0; }},
      {"cluster.min_window_clusters", [](CacheConfig& c) { c.cluster.min_window_clusters = 0; }},
      {"cluster.kmeans_iterations", [](CacheConfig& c) { c.cluster.kmeans_iterations = 0; }},
      {"cluster.sink_tokens", [](CacheConfig& c) { c.cluster.sink_tokens = -1; }},
      {"cluster.metric", [](CacheConfig& c) { c.cluster.metric = Metric{9}; }},
      {"cluster.index_dtype", [](CacheConfig& c) { c.cluster.index_dtype = IndexDType{9}; }},
      {"select.budget_tokens", [](CacheConfig& c) { c.select.budget_tokens = 0; }},
      {"select.grouping", [](CacheConfig& c) { c.select.grouping = HeadGrouping{9}; }},
      {"select.tail", [](CacheConfig& c) { c.select.tail = Tail{9}; }},
      {"select.tail_share", [=](CacheConfig& c) { c.select.tail_share = nan; }},
      {"select.dense_layers", [](CacheConfig& c) { c.select.dense_layers = -1; }},
      {"select.dense_threshold", [=](CacheConfig& c) { c.select.dense_threshold = nan; }},
      {"store.residency", [](CacheConfig& c) { c.store.residency = Residency{9}; }},
      {"store.retention", [](CacheConfig& c) { c.store.retention = Retention{9}; }},
      {"store.retain_steps", [](CacheConfig& c) { c.store.retain_steps = 65; }},
      {"store.host_bytes",
       [](CacheConfig& c) {
         c.store.residency = Residency::kHost;
         c.store.host_bytes = 1000;
       }},
      {"max_sequences", [](CacheConfig& c) { c.max_sequences = 0; }},
      {"max_tokens", [](CacheConfig& c) { c.max_tokens = 0; }},
      {"max_tokens", [](CacheConfig& c) { c.max_tokens = std::int64_t{1} << 40; }},
  };
}

TEST(BadConfig, IsRefusedByNameEverywhere) {
  for (const ConfigFault& fault : config_faults()) {
    CacheConfig config = small_config(small_model());
    fault.spoil(config);
    expect_error<ConfigError>([&] { ClusterKVCache cache(config); }, fault.field);
    expect_error<ConfigError>(
        [&] { (void)ClusterKVCache::memory_needs(config, Backend::kCpu, {}); }, fault.field);
    if (std::string(fault.field).starts_with("store.host")) continue;  // depends on sizes
    const Support support = ClusterKVCache::supports(config, Backend::kCpu);
    EXPECT_FALSE(support.ok);
    EXPECT_NE(std::string(support.reason).find(fault.field), std::string::npos) << support.reason;
    EXPECT_FALSE(ClusterSelector::supports(config, Backend::kCpu).ok);
    expect_error<ConfigError>([&] { ClusterSelector selector(config); }, fault.field);
  }
}

TEST(BadConfig, CudaIsUnavailableInThisBuild) {
  const CacheConfig config = small_config(small_model());
  EXPECT_TRUE(ClusterKVCache::supports(config, Backend::kCpu).ok);
  EXPECT_FALSE(ClusterKVCache::supports(config, Backend::kCuda).ok);
  Resources resources;
  resources.backend = Backend::kCuda;
  expect_error<BackendUnavailable>([&] { ClusterKVCache cache(config, resources); }, "CUDA");
}

// -------------------------------------------------------------------------------------- step

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

TEST_F(BadCall, AppendRefusesTensors) {
  plan_step(3, Phase::kDecode);
  const TensorView good = h_.kv_view(key_);
  const auto append = [&](TensorView key, TensorView value) {
    h_.cache.append(0, h_.plan, key, value);
  };
  TensorView bad = good;
  bad.shape[0] = 2;
  expect_error<ShapeError>([&] { append(bad, good); }, "key: shape [2, 2, 64]");
  expect_error<ShapeError>([&] { append(good, bad); }, "value: shape [2, 2, 64]");
  bad = good;
  bad.rank = 2;
  expect_error<ShapeError>([&] { append(bad, good); }, "of rank 2");
  bad.rank = 99;
  expect_error<ShapeError>([&] { append(bad, good); }, "of rank 99");
  bad = good;
  bad.shape[1] = 4;
  expect_error<ShapeError>([&] { append(bad, good); }, "expected [3, 2, 64]");
  bad = good;
  bad.data = nullptr;
  expect_error<ShapeError>([&] { append(bad, good); }, "key: data is null");
  expect_error<ShapeError>([&] { append(good, {}); }, "value: shape []");
  bad = good;
  bad.dtype = DType::kI32;
  expect_error<DTypeError>([&] { append(bad, good); },
                           "key: dtype i32, expected f32 or f16 or bf16");
  bad = good;
  bad.device.kind = Device::kCuda;
  expect_error<ShapeError>([&] { append(bad, good); }, "CUDA device");
  Stream cuda;
  cuda.backend = Backend::kCuda;
  expect_error<BackendUnavailable>([&] { h_.cache.append(0, h_.plan, good, good, cuda); },
                                   "stream.backend");
}

TEST_F(BadCall, CallsOutOfOrderAreRefused) {
  plan_step(2, Phase::kDecode);
  const StepRow row{id_};
  expect_error<StepError>([&] { h_.attend(0, query_); }, "layer: 0 was not appended");
  expect_error<StepError>(
      [&] {
        h_.cache.update(h_.plan, {&row, 1});
      },
      "lacks append() of layer 0");
  append(0);
  expect_error<StepError>([&] { h_.append(0, key_, value_); }, "layer: 0 was appended already");
  expect_error<StepError>([&] { h_.attend(1, query_); }, "layer: 1 was not appended");
  expect_error<StepError>(
      [&] {
        h_.cache.update(h_.plan, {&row, 1});
      },
      "lacks append() of layer 1");
  std::vector<float> rows(2 * 64);
  const TensorView one = view3(rows, 1, 2, 64);
  expect_error<StepError>([&] { h_.cache.read_rows(1, id_, 0, 1, one, one); }, "not appended");
  expect_error<ShapeError>([&] { h_.append(2, key_, value_); }, "layer: 2, expected 0 .. 1");
  expect_error<ShapeError>([&] { h_.append(-1, key_, value_); }, "layer: -1");
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

TEST_F(BadCall, AttendRefusesTensors) {
  const TensorView query = h_.query_view(query_);
  Output output;
  const AttentionOut good = make_out(output, 1, 4, 64);
  const auto attend = [&](const TensorView& q, const AttentionOut& out) {
    h_.cache.attend(0, h_.plan, {q, out});
  };
  TensorView bad = query;
  bad.shape[0] = 2;
  expect_error<ShapeError>([&] { attend(bad, good); }, "query: shape [2, 4, 64]");
  bad = query;
  bad.dtype = DType::kI32;
  expect_error<DTypeError>([&] { attend(bad, good); }, "query: dtype i32");
  AttentionOut bad_out = good;
  bad_out.out.stride[2] = 2;
  expect_error<ShapeError>([&] { attend(query, bad_out); }, "out: stride 2 along the last axis");
  bad_out = good;
  bad_out.lse.shape[1] = 3;
  expect_error<ShapeError>([&] { attend(query, bad_out); }, "lse: shape [1, 3]");
  bad_out = good;
  bad_out.lse.dtype = DType::kF16;
  expect_error<DTypeError>([&] { attend(query, bad_out); }, "lse: dtype f16");
  EXPECT_EQ(output.out, std::vector<float>(4 * 64, -7.0F)) << "a failed call wrote";
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

TEST_F(BadCall, ReadRowsRefusesRangesAndTensors) {
  std::vector<float> rows(3 * 2 * 64);
  const TensorView three = view3(rows, 3, 2, 64);
  const auto read = [&](std::int64_t first, std::int64_t last) {
    h_.cache.read_rows(0, id_, first, last, three, three);
  };
  read(10, 13);
  expect_error<ShapeError>([&] { read(-1, 2); }, "first, last: -1, 2");
  expect_error<ShapeError>([&] { read(5, 2); }, "first, last: 5, 2");
  expect_error<ShapeError>([&] { read(149, 152); }, "<= 151");
  expect_error<ShapeError>([&] { read(0, 2); }, "key: shape [3, 2, 64]");
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
