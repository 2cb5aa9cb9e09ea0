// SPDX-License-Identifier: Apache-2.0
//
// What callers in C can do wrong, and what their callbacks can: a code each, never a crash or an
// exception, and the cache as before.
#include <functional>
#include <new>
#include <stdexcept>

#include "tests/pipeline/lineage.hpp"
#include "tests/support/c_cache.hpp"

namespace clusterkv::testing {
namespace {

class CApiErrors : public ::testing::Test {
 protected:
  CApiErrors() : d_(config_of(Residency::kHost)) {
    id_ = d_.add(1);
    d_.prefill(id_, 300);
  }
  [[nodiscard]] ckv_cache* cache() const { return d_.cache.get(); }
  [[nodiscard]] std::int64_t id() const { return static_cast<std::int64_t>(id_); }

  /// A save that ends with what `write` does.
  ckv_status save_to(int (*write)(void*, const void*, size_t)) {
    const ckv_writer writer{sizeof writer, nullptr, write};
    return ckv_cache_save(cache(), id(), &writer, nullptr, &error_);
  }
  void expect(ckv_status got, ckv_status wanted, const std::string& argument) {
    EXPECT_EQ(got, wanted) << error_.message;
    EXPECT_EQ(error_.code, wanted);
    EXPECT_EQ(error_.argument, argument) << error_.message;
  }

  Driver<CCache> d_;
  SequenceId id_{};
  ckv_error error_ = c_struct<ckv_error>();
};

template <class E>
int throw_it(void*, const void*, size_t) {
  throw E("writer: what it was");
}

TEST_F(CApiErrors, EachHasACodeOfItsOwn) {
  const std::pair<ckv_status, int (*)(void*, const void*, size_t)> all[] = {
      {CKV_CONFIG_ERROR, throw_it<ConfigError>},
      {CKV_SHAPE_ERROR, throw_it<ShapeError>},
      {CKV_DTYPE_ERROR, throw_it<DTypeError>},
      {CKV_VALUE_ERROR, throw_it<ValueError>},
      {CKV_CAPACITY_ERROR, throw_it<CapacityError>},
      {CKV_UNKNOWN_SEQUENCE, throw_it<UnknownSequence>},
      {CKV_STEP_ERROR, throw_it<StepError>},
      {CKV_BACKEND_UNAVAILABLE, throw_it<BackendUnavailable>},
      {CKV_CUDA_ERROR, throw_it<CudaError>},
      {CKV_OUT_OF_MEMORY, throw_it<OutOfMemory>},
      {CKV_FORMAT_ERROR, throw_it<FormatError>},
      {CKV_FILE_ERROR, throw_it<FileError>},
      {CKV_OTHER_ERROR, throw_it<Error>}};
  ckv_status next = CKV_CONFIG_ERROR;
  for (const auto& [status, write] : all) {
    if (status != CKV_OTHER_ERROR) {
      EXPECT_EQ(status, next++);
    }
    expect(save_to(write), status, "writer");
    EXPECT_STREQ(error_.message, "writer: what it was");
  }
  EXPECT_EQ(next, CKV_ARGUMENT_ERROR) << "a type of error has no test";
}

TEST_F(CApiErrors, WhateverIsThrownIsACode) {
  expect(save_to([](void*, const void*, size_t) -> int { throw std::bad_alloc(); }),
         CKV_OUT_OF_MEMORY, "");
  expect(save_to([](void*, const void*, size_t) -> int { throw std::logic_error("logic"); }),
         CKV_OTHER_ERROR, "");
  EXPECT_STREQ(error_.message, "logic");
  expect(save_to([](void*, const void*, size_t) -> int { throw 3; }), CKV_OTHER_ERROR, "");
  expect(save_to([](void*, const void*, size_t) { return 5; }), CKV_CALLBACK_ERROR, "writer.write");
  expect(save_to([](void*, const void*, size_t) { return 0; }), CKV_OK, "");
  EXPECT_STREQ(error_.message, "");
  for (ckv_status status = CKV_OK; status <= CKV_OTHER_ERROR; ++status) {
    EXPECT_EQ(std::string(ckv_status_name(status)).find("CKV_"), 0U);
  }
  EXPECT_STREQ(ckv_status_name(-1), "not a ckv_status");
  EXPECT_STREQ(ckv_status_name(16), "not a ckv_status");
}

TEST_F(CApiErrors, LongTextsAreCut) {
  const std::string longer(1000, 'x');
  static std::string text;
  for (const std::string& name : {std::string(59, 'a'), std::string(60, 'a')}) {
    text = name + ": " + longer;
    EXPECT_EQ(save_to([](void*, const void*, size_t) -> int { throw ShapeError(text); }),
              CKV_SHAPE_ERROR);
    EXPECT_EQ(error_.argument, name.size() < sizeof error_.argument ? name : "");
    EXPECT_EQ(error_.message, text.substr(0, sizeof error_.message - 1));
  }
}

TEST_F(CApiErrors, ErrorObjectsOfAnotherSizeEndTheCallUnread) {
  std::int64_t made = -1;
  error_.struct_size = 8;
  error_.code = 77;
  EXPECT_EQ(ckv_cache_add_sequence(cache(), &made, &error_), CKV_ARGUMENT_ERROR);
  EXPECT_EQ(error_.code, 77);
  EXPECT_EQ(made, -1);
  EXPECT_EQ(d_.cache.stats().live_sequences, 1);
}

TEST_F(CApiErrors, ReadersThatFail) {
  const auto load = [&](int64_t (*read)(void*, void*, size_t)) {
    const ckv_reader reader{sizeof reader, nullptr, read};
    std::int64_t made = -1;
    return ckv_cache_load(cache(), &reader, nullptr, &made, &error_);
  };
  expect(load([](void*, void*, size_t) -> int64_t { return -3; }), CKV_CALLBACK_ERROR,
         "reader.read");
  expect(load([](void*, void*, size_t) -> int64_t { return 0; }), CKV_FORMAT_ERROR, "read");
  expect(load([](void*, void*, size_t size) { return static_cast<int64_t>(size) + 1; }),
         CKV_VALUE_ERROR, "read");
  expect(load([](void*, void*, size_t) -> int64_t { throw 1; }), CKV_OTHER_ERROR, "");
}

// ------------------------------------------------------------------------- executor and memory

/// Fails in its n-th region from now, in one of several ways, before, after or amid the tasks.
struct Faulty {
  int left = 1 << 30;
  int way = 0;
  static int run(void* context, int num_tasks, void (*task)(void*, int), void* arg) {
    auto& self = *static_cast<Faulty*>(context);
    const bool fails = self.left == 0;
    --self.left;
    const int done = fails ? num_tasks * (self.way % 3) / 2 : num_tasks;
    for (int i = 0; i < done; ++i) task(arg, i);
    if (!fails) return 0;
    if (self.way / 3 == 0) throw std::runtime_error("executor");
    if (self.way / 3 == 1) throw 3;
    return 1;
  }
};

/// Each region of a step fails once in every way; then the same call goes well, with the same bits.
TEST_F(CApiErrors, ExecutorsThatFailLeaveTheCacheAsItWas) {
  Faulty faulty;
  ckv_executor* executor = nullptr;
  auto callbacks = c_struct<ckv_executor_callbacks>();
  callbacks.context = &faulty;
  callbacks.concurrency = 2;
  callbacks.run = Faulty::run;
  ASSERT_EQ(ckv_executor_create_callbacks(&callbacks, &executor, nullptr), CKV_OK);
  auto stream = c_struct<ckv_stream>();
  stream.executor = executor;
  Driver<ClusterKVCache> twin(config_of(Residency::kHost));
  ASSERT_EQ(twin.add(1), id_);
  twin.prefill(id_, 300);
  const SequenceId other = twin.add(2);  // seals in the same steps
  ASSERT_EQ(d_.add(2), other);
  twin.prefill(other, 300);
  d_.prefill(other, 300);
  int failures = 0;
  const auto until_ok = [&](const std::function<ckv_status(ckv_error*)>& call) {
    for (int region = 0;; ++region) {
      const int way = failures % 9;
      faulty = {region, way};
      const ckv_status status = call(&error_);
      if (faulty.left >= 0) {  // it has no such region
        ASSERT_EQ(status, CKV_OK) << error_.message;
        return;
      }
      ++failures;
      ASSERT_EQ(status, way / 3 == 2 ? CKV_CALLBACK_ERROR : CKV_OTHER_ERROR) << error_.message;
    }
  };
  for (int i = 0; i < 60; ++i) {
    const std::vector<StepRow> rows = {{.id = id_}, {.id = other}};
    d_.begin(rows);
    Outputs got;
    for (int layer = 0; layer < 2; ++layer) {
      ckv_layer_call call{sizeof call, d_.plan.get(), &stream, layer, 0};
      const auto [key, value] = d_.new_rows(layer);
      const CTensor k(d_.kv_view(key)), v(d_.kv_view(value));
      until_ok([&](ckv_error* e) { return ckv_cache_append(cache(), &call, k, v, e); });
      const std::vector<float> query = d_.queries(layer);
      Output output;
      const CAttendArgs args({d_.query_view(query), make_out(output, 2, 6, 64)});
      until_ok([&](ckv_error* e) { return ckv_cache_attend(cache(), &call, &args.args, e); });
      got.push_back(output);
    }
    ASSERT_TRUE(same_bits(got, twin.step(rows))) << "step " << i;
  }
  EXPECT_GT(failures, 400);
  EXPECT_EQ(d_.cache.stats().clusters, twin.cache.stats().clusters);
  EXPECT_EQ(d_.cache.stats().kmeans_runs, twin.cache.stats().kmeans_runs);
  EXPECT_EQ(d_.cache.stats().total.attended_tokens, twin.cache.stats().total.attended_tokens);
  d_.plan = {};
  EXPECT_EQ(ckv_executor_destroy(executor, nullptr), CKV_OK);
}

/// Gives memory `left` times, then fails as `way` says.
struct Poor {
  int left;
  int way;
  int held = 0;
  static void* allocate(void* context, size_t bytes, size_t alignment, int32_t type, int32_t) {
    auto& self = *static_cast<Poor*>(context);
    EXPECT_EQ(type, CKV_DEVICE_CPU);
    if (self.left-- == 0) {
      if (self.way == 1) throw std::runtime_error("memory");
      if (self.way == 2) throw 5;
      return nullptr;
    }
    ++self.held;
    return operator new (bytes, std::align_val_t{alignment});
  }
  static void deallocate(void* context, void* data, size_t, size_t alignment, int32_t, int32_t) {
    --static_cast<Poor*>(context)->held;
    operator delete (data, std::align_val_t{alignment});
  }
};

TEST_F(CApiErrors, MemoryThatFailsMakesNoCacheAndLeaksNothing) {
  const ckv_config config = c_config(config_of(Residency::kHost));
  int failures = 0;
  for (int way = 0; way < 3; ++way) {
    for (int left = 0;; ++left) {
      Poor poor{left, way};
      auto memory = c_struct<ckv_memory_callbacks>();
      memory.context = &poor;
      memory.allocate = Poor::allocate;
      memory.deallocate = Poor::deallocate;
      auto on = c_struct<ckv_resources>();
      on.memory = &memory;
      ckv_cache* made = nullptr;
      const ckv_status status = ckv_cache_create(&config, &on, &made, &error_);
      if (status == CKV_OK) {
        EXPECT_EQ(ckv_cache_destroy(made, nullptr), CKV_OK);
        EXPECT_EQ(poor.held, 0);
        break;
      }
      ++failures;
      EXPECT_EQ(status, way == 0 ? CKV_OUT_OF_MEMORY : CKV_OTHER_ERROR);
      EXPECT_EQ(made, nullptr);
      EXPECT_EQ(poor.held, 0);
    }
  }
  EXPECT_GE(failures, 3 * 5);
}

}  // namespace
}  // namespace clusterkv::testing
