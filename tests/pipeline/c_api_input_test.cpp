// SPDX-License-Identifier: Apache-2.0
//
// Pointers, sizes and tensors that the C API takes or refuses.
#include <cstring>
#include <functional>

#include "tests/pipeline/lineage.hpp"
#include "tests/support/c_cache.hpp"

namespace clusterkv::testing {
namespace {

/// A step in which both layers are appended, and all that calls of it need.
class CApiInput : public ::testing::Test {
 protected:
  CApiInput() : d_(config_of(Residency::kDevice)) {
    id_ = d_.add(1);
    d_.prefill(id_, 300);
    d_.begin({{.id = id_}});
    d_.append_all();
    query_ = d_.queries(1);
    out_ = make_out(output_, 1, 6, 64);
    call_.plan = d_.plan.get();
    call_.layer = 1;
  }
  [[nodiscard]] ckv_cache* cache() const { return d_.cache.get(); }

  void expect(ckv_status got, ckv_status wanted, const std::string& argument) {
    EXPECT_EQ(got, wanted) << argument << ": " << error_.message;
    EXPECT_EQ(error_.argument, argument) << error_.message;
  }
  ckv_status attend_with(const ckv_tensor* query) {
    const CAttendArgs good({d_.query_view(query_), out_});
    ckv_attend_args args = good.args;
    args.query = query;
    return ckv_cache_attend(cache(), &call_, &args, &error_);
  }
  Output attended() {
    const CTensor query(d_.query_view(query_));
    EXPECT_EQ(attend_with(query), CKV_OK);
    return output_;
  }

  Driver<CCache> d_;
  SequenceId id_{};
  std::vector<float> query_;
  Output output_;
  AttentionOut out_;
  ckv_error error_ = c_struct<ckv_error>();
  ckv_layer_call call_ = c_struct<ckv_layer_call>();
};

TEST_F(CApiInput, NullsAreRefused) {
  const ckv_config config = c_config(config_of(Residency::kDevice));
  const ckv_plan_limits limits = c_limits({4, 1024, 0});
  const std::vector<ckv_step_row> rows = c_rows(std::vector<StepRow>{{.id = id_}});
  const CTensor query(d_.query_view(query_));
  const CAttendArgs args({d_.query_view(query_), out_});
  auto needs = c_struct<ckv_memory_needs>();
  auto selection = c_struct<ckv_selection>();
  ckv_cache* made = nullptr;
  ckv_plan* plan = nullptr;
  std::int64_t number = -9;
  ckv_error* e = &error_;
  const auto refused = [&](ckv_status status, const char* name) {
    expect(status, CKV_ARGUMENT_ERROR, name);
  };
  refused(ckv_config_standard(nullptr, e), "config");
  refused(ckv_cache_supports(nullptr, 0, nullptr, e), "reason");
  refused(ckv_cache_memory_needs(&config, 0, nullptr, &needs, e), "limits");
  refused(ckv_cache_memory_needs(&config, 0, &limits, nullptr, e), "needs");
  refused(ckv_cache_create(nullptr, nullptr, &made, e), "config");
  refused(ckv_cache_create(&config, nullptr, nullptr, e), "handle");
  refused(ckv_cache_config(cache(), nullptr, e), "config");
  refused(ckv_cache_add_sequence(nullptr, &number, e), "cache");
  refused(ckv_cache_add_sequence(cache(), nullptr, e), "sequence");
  refused(ckv_cache_fork(cache(), 0, -1, nullptr, nullptr, e), "sequence");
  refused(ckv_cache_truncate(nullptr, 0, 1, nullptr, e), "cache");
  refused(ckv_cache_remove(nullptr, 0, nullptr, e), "cache");
  refused(ckv_cache_save(cache(), 0, nullptr, nullptr, e), "writer");
  const ckv_writer no_write{sizeof no_write, nullptr, nullptr};
  refused(ckv_cache_save(cache(), 0, &no_write, nullptr, e), "writer.write");
  refused(ckv_cache_load(cache(), nullptr, nullptr, &number, e), "reader");
  const ckv_reader no_read{sizeof no_read, nullptr, nullptr};
  refused(ckv_cache_load(cache(), &no_read, nullptr, &number, e), "reader.read");
  refused(ckv_cache_load(cache(), &no_read, nullptr, nullptr, e), "sequence");
  refused(ckv_cache_length(cache(), 0, nullptr, e), "length");
  refused(ckv_cache_plan(cache(), nullptr, nullptr, &plan, e), "args");
  ckv_plan_args plan_args{sizeof plan_args, rows.data(), 1, &limits, nullptr};
  refused(ckv_cache_plan(cache(), &plan_args, nullptr, &plan, e), "workspace");
  refused(ckv_cache_plan(cache(), &plan_args, nullptr, nullptr, e), "plan");
  refused(ckv_cache_update(cache(), nullptr, rows.data(), 1, nullptr, e), "plan");
  refused(ckv_cache_update(cache(), call_.plan, nullptr, 1, nullptr, e), "rows");
  refused(ckv_cache_append(cache(), nullptr, query, query, e), "call");
  refused(ckv_cache_append(cache(), &call_, nullptr, query, e), "key");
  refused(ckv_cache_append(cache(), &call_, query, nullptr, e), "value");
  refused(ckv_cache_attend(cache(), &call_, nullptr, e), "args");
  refused(attend_with(nullptr), "query");
  ckv_attend_args no_out = args.args;
  no_out.out = nullptr;
  refused(ckv_cache_attend(cache(), &call_, &no_out, e), "out");
  refused(ckv_cache_prefetch(cache(), nullptr, query, e), "call");
  refused(ckv_cache_prefetch(cache(), &call_, nullptr, e), "query_hint");
  refused(ckv_cache_select(cache(), &call_, query, nullptr, e), "selection");
  refused(ckv_cache_select(cache(), &call_, nullptr, &selection, e), "query");
  refused(ckv_cache_attend_selected(cache(), &call_, nullptr, &args.args, e), "selection");
  ASSERT_EQ(ckv_cache_select(cache(), &call_, query, &selection, e), CKV_OK);
  refused(ckv_cache_token_ids(cache(), &call_, &selection, nullptr, query, e), "ids");
  refused(ckv_cache_token_ids(cache(), &call_, &selection, query, nullptr, e), "counts");
  refused(ckv_cache_read_rows(cache(), nullptr, query, query, nullptr, e), "range");
  refused(ckv_cache_stats(cache(), nullptr, e), "stats");
  std::int32_t count = 0;
  refused(ckv_plan_num_rows(nullptr, &count, e), "plan");
  refused(ckv_plan_num_new_tokens(call_.plan, nullptr, e), "count");
  refused(ckv_dense_decode(nullptr, &args.result, nullptr, e), "args");
  refused(ckv_merge_states(nullptr, 1, nullptr, nullptr, e), "parts");
  refused(ckv_executor_create_pool(1, nullptr, e), "executor");
  refused(ckv_executor_create_callbacks(nullptr, nullptr, e), "executor");
  call_.plan = nullptr;
  refused(ckv_cache_attend(cache(), &call_, &args.args, e), "call.plan");
  EXPECT_EQ(ckv_cache_destroy(nullptr, nullptr), CKV_OK);
  EXPECT_EQ(ckv_plan_destroy(nullptr, nullptr), CKV_OK);
  EXPECT_EQ(ckv_executor_destroy(nullptr, nullptr), CKV_OK);
  EXPECT_EQ(number, -9);
}

/// A struct of any other size, also a huge one, whose rest must not be read.
TEST_F(CApiInput, OtherSizesAreRefused) {
  const CAttendArgs args({d_.query_view(query_), out_});
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, sizeof(ckv_config) - 8,
                                 sizeof(ckv_config) + 8, ~std::size_t{0}}) {
    ckv_config config = c_config(config_of(Residency::kDevice));
    config.struct_size = size;
    ckv_cache* made = nullptr;
    expect(ckv_cache_create(&config, nullptr, &made, &error_), CKV_ARGUMENT_ERROR,
           "config.struct_size");
    ckv_step_row row{size, 0, 1, 1, 0, 0};
    expect(ckv_cache_update(cache(), call_.plan, &row, 1, nullptr, &error_), CKV_ARGUMENT_ERROR,
           "rows.struct_size");
    const ckv_stream stream{size, 0, 0, nullptr, nullptr};
    expect(ckv_cache_truncate(cache(), 0, 1, &stream, &error_), CKV_ARGUMENT_ERROR,
           "stream.struct_size");
    ckv_step_stats step{};
    step.struct_size = size;
    auto stats = c_struct<ckv_stats>();
    stats.step = &step;
    expect(ckv_cache_stats(cache(), &stats, &error_), CKV_ARGUMENT_ERROR, "stats.step.struct_size");
    ckv_attend_args changed = args.args;
    changed.struct_size = size;
    expect(ckv_cache_attend(cache(), &call_, &changed, &error_), CKV_ARGUMENT_ERROR,
           "args.struct_size");
  }
  call_.reserved = 1;
  expect(ckv_cache_attend(cache(), &call_, &args.args, &error_), CKV_ARGUMENT_ERROR,
         "call.reserved");
}

TEST_F(CApiInput, NumbersOutOfRangeAreRefused) {
  std::vector<ckv_step_row> rows = c_rows(std::vector<StepRow>{{.id = id_}});
  const auto update = [&](size_t count) {
    return ckv_cache_update(cache(), call_.plan, rows.data(), count, nullptr, &error_);
  };
  expect(update(0), CKV_SHAPE_ERROR, "rows");
  expect(update(5), CKV_SHAPE_ERROR, "rows");  // not read: there is one
  expect(update(~size_t{0}), CKV_SHAPE_ERROR, "rows");
  for (const int phase : {-1, 3, 256, 1 << 30}) {
    rows[0].phase = phase;
    expect(update(1), CKV_SHAPE_ERROR, "rows");
  }
  const ckv_config good = c_config(config_of(Residency::kDevice));
  const char* reason = nullptr;
  expect(ckv_cache_supports(&good, 2, &reason, &error_), CKV_BACKEND_UNAVAILABLE, "backend");
  const std::pair<const char*, int32_t ckv_config::*> enums[] = {
      {"model.kv_dtype", &ckv_config::kv_dtype},
      {"cluster.metric", &ckv_config::metric},
      {"cluster.index_dtype", &ckv_config::index_dtype},
      {"select.grouping", &ckv_config::grouping},
      {"select.tail", &ckv_config::tail},
      {"store.residency", &ckv_config::residency},
      {"store.retention", &ckv_config::retention}};
  for (const auto& [name, field] : enums) {
    for (const int32_t value : {-1, 4, 255, 256, 1 << 30}) {
      ckv_config bad = good;
      bad.*field = value;
      ckv_cache* made = nullptr;
      expect(ckv_cache_create(&bad, nullptr, &made, &error_), CKV_CONFIG_ERROR, name);
    }
  }
  const int32_t layer = 0;
  for (const int32_t layers : {-1, 0, 1 << 20}) {
    ckv_config bad = good;
    bad.num_layers = layers;
    bad.layers = &layer;  // fewer than it says: not read
    ckv_cache* made = nullptr;
    expect(ckv_cache_create(&bad, nullptr, &made, &error_), CKV_CONFIG_ERROR, "model.num_layers");
  }
}

TEST_F(CApiInput, PlansOfOthersAreRefusedAndKeepTheirCache) {
  const CAttendArgs args({d_.query_view(query_), out_});
  ckv_selector* selector = nullptr;
  const ckv_config config = c_config(config_of(Residency::kDevice));
  ASSERT_EQ(ckv_selector_create(&config, nullptr, &selector, &error_), CKV_OK);
  auto selection = c_struct<ckv_selection>();
  expect(ckv_selector_select(selector, &call_, CTensor(d_.query_view(query_)), &selection, &error_),
         CKV_STEP_ERROR, "plan");
  expect(ckv_cache_destroy(cache(), &error_), CKV_STEP_ERROR, "handle");
  EXPECT_EQ(ckv_cache_attend(cache(), &call_, &args.args, &error_), CKV_OK);
  EXPECT_EQ(ckv_selector_destroy(selector, nullptr), CKV_OK);
  std::int64_t length = 0;
  expect(ckv_cache_length(cache(), 99, &length, &error_), CKV_UNKNOWN_SEQUENCE, "id");
}

TEST_F(CApiInput, TensorsMayHaveAnyForm) {
  const Output wanted = attended();
  CTensor query(d_.query_view(query_));
  query.tensor.strides = nullptr;
  EXPECT_EQ(attend_with(query), CKV_OK);
  EXPECT_TRUE(same_bits({output_}, {wanted}));
  std::vector<float> shifted(query_.size() + 3);
  std::copy(query_.begin(), query_.end(), shifted.begin() + 3);
  query.tensor.data = shifted.data();
  query.tensor.byte_offset = 12;
  EXPECT_EQ(attend_with(query), CKV_OK);
  EXPECT_TRUE(same_bits({output_}, {wanted}));
  std::vector<float> apart(2 * query_.size());
  for (std::size_t i = 0; i < query_.size(); ++i) apart[2 * i] = query_[i];
  query.tensor.data = apart.data();
  query.tensor.byte_offset = 0;
  query.tensor.strides = query.stride;
  for (std::int64_t& stride : query.stride) stride *= 2;
  for (const int device : {CKV_DEVICE_CPU, CKV_DEVICE_CUDA_HOST, CKV_DEVICE_CUDA_MANAGED}) {
    query.tensor.device.device_type = device;
    EXPECT_EQ(attend_with(query), CKV_OK);
    EXPECT_TRUE(same_bits({output_}, {wanted}));
  }
}

TEST_F(CApiInput, TensorsOfAnotherFormAreRefused) {
  using Spoil = std::function<void(CTensor&)>;
  const std::tuple<ckv_status, std::string, Spoil> cases[] = {
      {CKV_SHAPE_ERROR, "query", [](CTensor& t) { t.tensor.ndim = 0; }},
      {CKV_SHAPE_ERROR, "query", [](CTensor& t) { t.tensor.ndim = -1; }},
      {CKV_SHAPE_ERROR, "query", [](CTensor& t) { t.tensor.ndim = 6; }},
      {CKV_SHAPE_ERROR, "query", [](CTensor& t) { t.tensor.ndim = 2; }},
      {CKV_SHAPE_ERROR, "query", [](CTensor& t) { t.shape[0] = 2; }},
      {CKV_SHAPE_ERROR, "query", [](CTensor& t) { t.shape[1] = -1; }},
      {CKV_SHAPE_ERROR, "query", [](CTensor& t) { t.tensor.data = nullptr; }},
      {CKV_SHAPE_ERROR, "query",
       [](CTensor& t) { t.tensor.data = nullptr, t.tensor.byte_offset = 64; }},
      {CKV_SHAPE_ERROR, "query", [](CTensor& t) { t.tensor.byte_offset = 2; }},
      {CKV_SHAPE_ERROR, "query", [](CTensor& t) { t.tensor.device.device_type = CKV_DEVICE_CUDA; }},
      {CKV_SHAPE_ERROR, "query", [](CTensor& t) { t.tensor.device.device_type = 7; }},
      {CKV_SHAPE_ERROR, "query",
       [](CTensor& t) {
         t.tensor.strides = nullptr;
         t.shape[1] = t.shape[2] = std::int64_t{1} << 40;
       }},
      {CKV_ARGUMENT_ERROR, "query.shape", [](CTensor& t) { t.tensor.shape = nullptr; }},
      {CKV_DTYPE_ERROR, "query",
       [](CTensor& t) {
         t.tensor.dtype = {CKV_TYPE_INT, 32, 1};
       }},
      {CKV_DTYPE_ERROR, "query", [](CTensor& t) { t.tensor.dtype.bits = 64; }},
      {CKV_DTYPE_ERROR, "query", [](CTensor& t) { t.tensor.dtype.lanes = 4; }},
      {CKV_DTYPE_ERROR, "query", [](CTensor& t) { t.tensor.dtype.code = 1; }}};
  for (const auto& [status, name, spoil] : cases) {
    CTensor query(d_.query_view(query_));
    spoil(query);
    expect(attend_with(query), status, name);
  }
}

}  // namespace
}  // namespace clusterkv::testing
