// SPDX-License-Identifier: Apache-2.0
//
// The C API answers with the bits of the C++ API, through whole lives of sequences.
#include <cstring>
#include <thread>

#include "tests/pipeline/lineage.hpp"
#include "tests/pipeline/news.hpp"
#include "tests/support/c_cache.hpp"
#include "tests/support/disk.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::testing {
namespace {

/// All that a life gave: outputs, choices, rows, bytes, counts.
struct Story {
  Outputs outputs;
  std::vector<Choice> choices;
  std::vector<std::vector<std::vector<std::vector<std::int32_t>>>> positions;
  std::vector<float> rows;
  std::vector<std::byte> saved;
  std::vector<std::int64_t> lengths;
  CacheStats stats;
};

template <class Cache>
class Life {
 public:
  explicit Life(const CacheConfig& config) : d_(config) {}

  Story run() {
    const SequenceId a = d_.add(1), b = d_.add(2);
    keep(d_.step({{a, 200, 1, Phase::kPrefill}, {b, 30, 0, Phase::kPrefill}}));
    keep(d_.step({{a, 100, 1, Phase::kPrefillLast}, {kNoSequence, 2, 1}}));
    for (int i = 0; i < 30; ++i) keep(d_.step({{.id = a}, {b, 3, 1, Phase::kDecode, 16}}));
    const SequenceId child = d_.fork(a, 250);
    keep(go_on(d_, child, 10));
    d_.cache.truncate(a, 310);
    keep(go_on(d_, a, 30));
    choose(a);
    save(a);
    d_.cache.remove(a);
    const SequenceId back = load();
    d_.reseed(back, 1);
    keep(go_on(d_, back, 30));
    read(back);
    for (const SequenceId id : {b, child, back}) story_.lengths.push_back(d_.cache.length(id));
    story_.stats = d_.cache.stats();
    return story_;
  }

 private:
  void keep(const Outputs& outputs) {
    story_.outputs.insert(story_.outputs.end(), outputs.begin(), outputs.end());
  }

  /// select(), token_ids(), and attend_selected() over the choice of another layer's query.
  void choose(SequenceId id) {
    d_.begin({{.id = id, .budget_tokens = 20}});
    d_.append_all();
    const Selection selection = d_.select(1);
    story_.choices.push_back(copy_choice(selection));
    story_.positions.push_back(d_.positions(1, selection));
    const ModelShape& m = d_.cache.config().model;
    const std::vector<float> query = d_.queries(0), sinks(6, 0.25F);
    Output output;
    const AttentionOut out = make_out(output, 1, m.num_q_heads, m.head_dim);
    d_.cache.attend_selected(
        1, d_.plan, selection,
        {d_.query_view(query), out, contiguous_view(sinks.data(), DType::kF32, {6})});
    story_.outputs.push_back(output);
  }

  void save(SequenceId id) {
    d_.cache.save(id, [&](std::span<const std::byte> part) {
      story_.saved.insert(story_.saved.end(), part.begin(), part.end());
    });
  }
  SequenceId load() {
    std::size_t at = 0;
    return d_.cache.load([&](std::span<std::byte> to) {
      std::copy_n(story_.saved.data() + at, to.size(), to.begin());
      at += to.size();
      return to.size();
    });
  }
  void read(SequenceId id) {
    story_.rows.assign(2 * 200 * 2 * 64, 0.0F);
    const float* data = story_.rows.data();
    const auto view = [&](int first) {
      return contiguous_view(data + first * 200 * 2 * 64, DType::kF32, {200, 2, 64});
    };
    d_.cache.read_rows(1, id, 50, 250, view(0), view(1));
  }

  Driver<Cache> d_;
  Story story_;
};

class CApi : public Lineage {};
INSTANTIATE_TEST_SUITE_P(Residencies, CApi, kResidencies, name_of);

TEST_P(CApi, AWholeLifeHasTheBitsOfTheCppApi) {
  const Directory directory;
  if (GetParam() == Residency::kHost) config_.store.cold_path = directory.path();
  const Story wanted = Life<ClusterKVCache>(config_).run();
  const Story got = Life<CCache>(config_).run();
  ASSERT_GT(wanted.outputs.size(), 150U);
  EXPECT_TRUE(same_bits(got.outputs, wanted.outputs));
  EXPECT_EQ(got.choices, wanted.choices);
  EXPECT_EQ(got.positions, wanted.positions);
  EXPECT_TRUE(same_bits(got.rows, wanted.rows));
  EXPECT_EQ(got.saved, wanted.saved);
  EXPECT_EQ(got.lengths, wanted.lengths);
  static_assert(sizeof(CacheStats) == (2 * 19 + 9) * 8, "no padding");
  EXPECT_EQ(std::memcmp(&got.stats, &wanted.stats, sizeof(CacheStats)), 0);
  EXPECT_GT(got.stats.step.bytes_touched(), 0);
}

TEST_P(CApi, MemoryNeedsAndSupportAreThoseOfTheCppApi) {
  const PlanLimits limits{3, 300, 40, 1, 5000};
  const MemoryNeeds a = CCache::memory_needs(config_, Backend::kCpu, limits);
  const MemoryNeeds b = ClusterKVCache::memory_needs(config_, Backend::kCpu, limits);
  EXPECT_EQ(std::memcmp(&a, &b, sizeof a), 0);
  const char* reason = "unset";
  ckv_config config = c_config(config_);
  EXPECT_EQ(ckv_cache_supports(&config, CKV_BACKEND_CPU, &reason, nullptr), CKV_OK);
  EXPECT_EQ(reason, nullptr);
  config.metric = 256;  // no metric, though its lowest byte is one
  EXPECT_EQ(ckv_selector_supports(&config, CKV_BACKEND_CPU, &reason, nullptr), CKV_OK);
  EXPECT_STREQ(reason, ClusterKVCache::supports(
                           [&] {
                             CacheConfig bad = config_;
                             bad.cluster.metric = Metric{77};
                             return bad;
                           }(),
                           Backend::kCpu)
                           .reason);
}

TEST(CApiConfig, PresetsAreThoseOfTheCppApi) {
  for (const bool paper : {false, true}) {
    auto got = c_struct<ckv_config>();
    ASSERT_EQ((paper ? ckv_config_paper : ckv_config_standard)(&got, nullptr), CKV_OK);
    const CacheConfig preset = paper ? CacheConfig::paper({}) : CacheConfig::standard({});
    const ckv_config wanted = c_config(preset);
    EXPECT_EQ(std::memcmp(&got, &wanted, sizeof got), 0);
  }
}

TEST(CApiConfig, ComesBackAsGiven) {
  CacheConfig config = small_config(small_model(2, 6, 2));
  config.model.layers = {3, 9};
  config.model.softmax_scale = 0.5F;
  config.model.logit_softcap = 30;
  config.model.value_dim = 96;
  config.cluster.seed = 7;
  config.cluster.metric = Metric::kL2;
  config.select.grouping = HeadGrouping::kPerQueryHead;
  const Directory directory;
  config.store = {Residency::kHost,        1 << 20, 1 << 24, directory.path(), 900,
                  Retention::kRetainSteps, 3};
  config.check_finite = true;
  const CCache cache(config);
  auto got = c_struct<ckv_config>();
  ASSERT_EQ(ckv_cache_config(cache.get(), &got, nullptr), CKV_OK);
  ckv_config wanted = c_config(config);
  ASSERT_NE(got.layers, nullptr);
  EXPECT_EQ(got.layers[0], 3);
  EXPECT_EQ(got.layers[1], 9);
  wanted.layers = got.layers;
  EXPECT_EQ(got.cold_path, directory.path());
  wanted.cold_path = got.cold_path;
  EXPECT_EQ(std::memcmp(&got, &wanted, sizeof got), 0);
}

TEST_P(CApi, DecodeStepsAllocateNothing) {
  if (!kCountsNews) GTEST_SKIP() << "a sanitizer counts for itself";
  Driver<CCache> d(config_);
  const SequenceId id = d.add(1);
  d.prefill(id, 300);
  (void)d.decode(id);
  const ckv_step_row row{sizeof row, static_cast<std::int64_t>(id), 1, 1, CKV_DECODE, 0};
  ckv_layer_call call{sizeof call, d.plan.get(), nullptr, 0, 0};
  const std::vector<float> rows(2 * 64, 0.5F), query(6 * 64, 0.5F);
  const CTensor kv(d.kv_view(rows));
  Output output;
  const CAttendArgs args({d.query_view(query), make_out(output, 1, 6, 64)});
  auto selection = c_struct<ckv_selection>();
  auto error = c_struct<ckv_error>();
  begin_counting_news();
  ckv_status status = CKV_OK;
  const auto did = [&](ckv_status now) { status = now == CKV_OK ? status : now; };
  for (int i = 0; i < 60; ++i) {
    did(ckv_cache_update(d.cache.get(), call.plan, &row, 1, nullptr, &error));
    for (call.layer = 0; call.layer < 2; ++call.layer) {
      did(ckv_cache_append(d.cache.get(), &call, kv, kv, &error));
      did(ckv_cache_attend(d.cache.get(), &call, &args.args, &error));
      did(ckv_cache_select(d.cache.get(), &call, args.query, &selection, &error));
    }
  }
  EXPECT_EQ(end_counting_news(), 0);
  EXPECT_EQ(status, CKV_OK);
}

// ------------------------------------------------------------------------------------ threads

/// Threads of the engine's, through the C API alone.
TEST_P(CApi, RunsOnLentThreads) {
  Cache d(config_);
  Driver<CCache> lent(config_);
  const SequenceId id = d.add(1);
  ASSERT_EQ(lent.add(1), id);
  for (const int prompt : {100, 200}) {
    (void)go_on(d, id, 0, prompt);
    (void)go_on(lent, id, 0, prompt);
  }
  lent.begin({{.id = id}});
  lent.append_all();
  ckv_executor* threads = nullptr;
  ASSERT_EQ(ckv_executor_create_lent(2, &threads, nullptr), CKV_OK);
  std::thread helper([&] { EXPECT_EQ(ckv_executor_serve(threads, 0, nullptr), CKV_OK); });
  CStream stream(Stream{});
  stream.value.executor = threads;
  auto call = c_struct<ckv_layer_call>();
  call.plan = lent.plan.get();
  call.stream = stream;
  call.layer = 1;
  Output output;
  const std::vector<float> query = lent.queries(1);
  const CAttendArgs args({lent.query_view(query), make_out(output, 1, 6, 64)});
  EXPECT_EQ(ckv_cache_attend(lent.cache.get(), &call, &args.args, nullptr), CKV_OK);
  EXPECT_EQ(ckv_executor_release(threads, nullptr), CKV_OK);
  helper.join();
  EXPECT_EQ(ckv_executor_destroy(threads, nullptr), CKV_OK);
  EXPECT_TRUE(same_bits({output}, {d.decode(id)[1]}));
}

TEST(CApiExecutor, KindsAreToldApart) {
  ckv_executor* pool = nullptr;
  auto error = c_struct<ckv_error>();
  ASSERT_EQ(ckv_executor_create_pool(2, &pool, &error), CKV_OK);
  EXPECT_EQ(ckv_executor_serve(pool, 0, &error), CKV_ARGUMENT_ERROR);
  EXPECT_EQ(ckv_executor_release(pool, &error), CKV_ARGUMENT_ERROR);
  EXPECT_STREQ(error.argument, "executor");
  EXPECT_EQ(ckv_executor_destroy(pool, nullptr), CKV_OK);
  EXPECT_EQ(ckv_executor_create_pool(-1, &pool, &error), CKV_CONFIG_ERROR);
  EXPECT_STREQ(error.argument, "num_threads");
  EXPECT_EQ(ckv_executor_create_lent(0, &pool, nullptr), CKV_CONFIG_ERROR);
}

// ---------------------------------------------------------------------------------- attention

TEST(CApiAttention, HasTheBitsOfTheCppApi) {
  const TokenSource source(small_model(), 5);
  const std::vector<float> key = source.keys(0, 0, 200), value = source.values(0, 0, 200),
                           query = source.query(0, 7);
  const auto rows = [](const std::vector<float>& data) {
    return contiguous_view(data.data(), DType::kF32, {1, 200, 2, 64});
  };
  std::vector<std::int32_t> ids, counts = {50, 30}, lengths = {150};
  for (int i = 0; i < 100; ++i) ids.push_back(i % 50 * 3);
  const TensorView id_view = contiguous_view(ids.data(), DType::kI32, {1, 2, 50});
  const TensorView count_view = contiguous_view(counts.data(), DType::kI32, {1, 2});
  const DecodeArgs args{view3(query, 1, 4, 64),
                        rows(key),
                        rows(value),
                        contiguous_view(lengths.data(), DType::kI32, {1}),
                        0.2F,
                        1.5F};
  Output dense, sparse, merged, c_dense, c_sparse, c_merged;
  const auto out = [](Output& output) { return make_out(output, 1, 4, 64); };
  dense_decode(args, out(dense));
  sparse_decode(args, id_view, count_view, out(sparse));
  merge_states(std::array{AttentionOut{view3(dense.out, 1, 4, 64),
                                       contiguous_view(dense.lse.data(), DType::kF32, {1, 4})},
                          AttentionOut{view3(sparse.out, 1, 4, 64),
                                       contiguous_view(sparse.lse.data(), DType::kF32, {1, 4})}},
               out(merged));
  const CTensor q(args.query), k(args.key), v(args.value), l(args.lengths);
  const ckv_decode_args c_args{sizeof c_args, q, k, v, l, 0.2F, 1.5F};
  const CAttendArgs to_dense({args.query, out(c_dense)}), to_sparse({args.query, out(c_sparse)}),
      to_merged({args.query, out(c_merged)});
  ASSERT_EQ(ckv_dense_decode(&c_args, &to_dense.result, nullptr, nullptr), CKV_OK);
  ASSERT_EQ(ckv_sparse_decode(&c_args, CTensor(id_view), CTensor(count_view), &to_sparse.result,
                              nullptr, nullptr),
            CKV_OK);
  const ckv_attention_out parts[] = {to_dense.result, to_sparse.result};
  ASSERT_EQ(ckv_merge_states(parts, 2, &to_merged.result, nullptr, nullptr), CKV_OK);
  EXPECT_TRUE(same_bits({c_dense, c_sparse, c_merged}, {dense, sparse, merged}));
  EXPECT_EQ(ckv_merge_states(nullptr, 0, &to_merged.result, nullptr, nullptr), CKV_SHAPE_ERROR);
}

}  // namespace
}  // namespace clusterkv::testing
