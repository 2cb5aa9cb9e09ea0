// SPDX-License-Identifier: Apache-2.0
//
// What the command line measures and writes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "clusterkv/error.hpp"
#include "kernels/common/numeric.hpp"
#include "tools/clusterkv/half.hpp"
#include "tools/clusterkv/metrics.hpp"
#include "tools/clusterkv/replay.hpp"
#include "tools/clusterkv/report.hpp"
#include "tools/clusterkv/synth.hpp"

namespace clusterkv::tool {
namespace {

TEST(Percentile, InterpolatesBetweenRanks) {
  EXPECT_DOUBLE_EQ(percentile({4, 1, 3, 2}, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(percentile({4, 1, 3, 2}, 0.0), 1);
  EXPECT_DOUBLE_EQ(percentile({4, 1, 3, 2}, 1.0), 4);
  EXPECT_DOUBLE_EQ(percentile({10, 20}, 0.95), 19.5);
  EXPECT_DOUBLE_EQ(percentile({7}, 0.3), 7);
  EXPECT_DOUBLE_EQ(percentile({}, 0.3), 0);
}

TEST(HitRate, LooksBackAsManyStepsAsItSays) {
  HitRate one(1), two(2);
  const std::vector<std::vector<HitRate::Cluster>> steps = {
      {{1, 8}, {2, 8}}, {{2, 8}, {3, 5}}, {{1, 4}, {3, 8}, {4, 2}}, {}, {{4, 2}}};
  for (const auto& step : steps) {
    one.add(step);
    two.add(step);
  }
  // Step 1 hits {2}; step 2 hits {3}, and with R = 2 also {1}; step 3 is empty; step 4 misses, but
  // with R = 2 it hits {4}.
  EXPECT_DOUBLE_EQ(one.rate(), (1.0 / 2 + 1.0 / 3 + 0) / 3);
  EXPECT_DOUBLE_EQ(two.rate(), (1.0 / 2 + 2.0 / 3 + 1) / 3);
  EXPECT_DOUBLE_EQ(one.missed_rows(), (5 + 4 + 2 + 2) / 3.0);
  EXPECT_DOUBLE_EQ(two.missed_rows(), (5 + 2 + 0) / 3.0);
}

TEST(Half, AgreesWithTheLibrary) {
  for (int bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = clusterkv::f16_to_float(half);
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(tool::f16_to_float(half), value);
    ASSERT_EQ(tool::float_to_f16(value), half);
    for (const float near : {value * 1.0003F, value * 0.9997F, value + 3e-8F}) {
      ASSERT_EQ(tool::float_to_f16(near), clusterkv::float_to_f16(near)) << near;
    }
  }
}

TEST(Json, HasTheKeysScriptsReadAndNoOthers) {
  const Metrics m{.preset = "standard", .layer = 9, .budget = 128, .error_mean = 0.25};
  const auto array = nlohmann::ordered_json::parse(format_json({m, m}));
  ASSERT_EQ(array.size(), 2U);
  std::vector<std::string> keys;
  for (const auto& [key, value] : array[0].items()) keys.push_back(key);
  EXPECT_EQ(keys, (std::vector<std::string>{"preset", "layer", "budget", "error_mean", "error_p95",
                                            "mass_recall", "token_recall", "hit_rate_r1",
                                            "hit_rate_r2", "hit_rate_r3", "attended_tokens",
                                            "bytes_touched", "step_us", "dense_us"}));
  EXPECT_EQ(array[0]["error_mean"], 0.25);
  EXPECT_EQ(format_json({}), "[]\n");
}

TEST(Table, HasALineForEachRow) {
  const std::string text = format_table({{.preset = "paper", .budget = 77}, {}}, false);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_NE(text.find("paper"), std::string::npos);
  EXPECT_NE(text.find("77"), std::string::npos);
}

class Synth : public ::testing::Test {
 protected:
  std::string path(const char* name) {
    return (std::filesystem::temp_directory_path() /
            (std::string("clusterkv_synth_") + std::to_string(getpid()) + name))
        .string();
  }
  static std::string read(const std::string& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
};

TEST_F(Synth, IsTheSameFileForTheSameSeed) {
  SynthOptions options{.tokens = 400, .queries = 8};
  const std::string a = path("a"), b = path("b");
  write_synth(a, options);
  write_synth(b, options);
  EXPECT_EQ(read(a), read(b));
  options.seed = 2;
  write_synth(b, options);
  constexpr std::size_t kTail = 4096;  // of the data: the header names the seed
  EXPECT_NE(read(a).substr(read(a).size() - kTail), read(b).substr(read(b).size() - kTail));
  EXPECT_NE(read(a).find("synthetic"), std::string::npos);
  std::filesystem::remove(a);
  std::filesystem::remove(b);
}

TEST_F(Synth, RejectsOptions) {
  const auto expect = [&](SynthOptions options) {
    EXPECT_THROW(write_synth(path("c"), options), ConfigError);
  };
  expect({.tokens = 1});
  expect({.tokens = (1 << 20) + 1});
  expect({.tokens = 10, .queries = 10});
  expect({.q_heads = 3, .kv_heads = 2});
  expect({.head_dim = 0});
  EXPECT_THROW(write_synth("/nowhere/at/all", {.tokens = 10, .queries = 2}), FormatError);
}

TEST_F(Synth, ReplaysExactlyWithABudgetOfAllTokens) {
  const std::string file = path("d");
  write_synth(file, {.tokens = 700, .layers = 2, .queries = 20});
  Trace trace = read_trace(file);
  const auto executor = make_thread_pool(1);
  for (const float softcap : {0.0F, 2.0F}) {
    trace.logit_softcap = softcap;
    for (const char* preset : {"standard", "paper"}) {
      ReplayOptions options;
      options.chunk = 100;
      const auto rows = replay(trace, preset, 5000, options, *executor, [](double) {}).layers;
      ASSERT_EQ(rows.size(), 2U);
      for (const Metrics& m : rows) {
        EXPECT_LT(m.error_mean, 1e-5);
        EXPECT_NEAR(m.mass_recall, 1.0, 1e-4);
        EXPECT_EQ(m.token_recall, 1.0);
        EXPECT_EQ(m.hit_rate_r1, 1.0);
      }
    }
  }
  EXPECT_THROW(replay_config(trace, "best", 100, {}), ConfigError);
  ReplayOptions wrong;
  wrong.layers = {7};
  EXPECT_THROW(replay_config(trace, "standard", 100, wrong), ConfigError);
  std::filesystem::remove(file);
}

/// No token of the prompt is clustered: all is attended, and nothing is missed.
TEST_F(Synth, ReplaysAPromptOfSinksAlone) {
  const std::string file = path("e");
  for (const int queries : {19, 8, 4, 3}) {  // prompts of 1, 12, 16 and 17 tokens
    write_synth(file, {.tokens = 20, .queries = queries});
    const Trace trace = read_trace(file);
    const auto executor = make_thread_pool(1);
    for (const char* preset : {"standard", "paper"}) {
      const Metrics m = replay(trace, preset, 128, {}, *executor, [](double) {}).layers[0];
      EXPECT_LT(m.error_mean, 1e-5);
      EXPECT_NEAR(m.mass_recall, 1.0, 1e-5);
      EXPECT_EQ(m.token_recall, 1.0);
      EXPECT_EQ(m.attended_tokens, 20 - (queries - 1) / 2.0);
    }
  }
  std::filesystem::remove(file);
}

TEST_F(Synth, TellsHowFarItIs) {
  const std::string file = path("f");
  std::vector<double> told;
  write_synth(file, {.tokens = 3000, .layers = 2, .queries = 5},
              [&](double share) { told.push_back(share); });
  EXPECT_GT(told.size(), 5U);
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_GE(told.front(), 0);
  EXPECT_LE(told.back(), 1);
  std::filesystem::remove(file);
}

}  // namespace
}  // namespace clusterkv::tool
