// SPDX-License-Identifier: Apache-2.0
//
// Errors on recorded attention, inside bands around figures of an independent NumPy form of the
// algorithm (docs/testing.md).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "tests/support/trace_replay.hpp"
#include "tools/clusterkv/replay.hpp"

namespace clusterkv::tool {
namespace {

std::vector<Metrics> run(const Trace& trace, const std::string& preset, int budget,
                         ReplayOptions options = {}) {
  const auto executor = make_thread_pool(2);
  return replay(trace, preset, budget, options, *executor, [](double) {}).layers;
}

void expect_near_share(double value, double expected, double share) {
  EXPECT_LE(std::abs(value - expected), share * expected) << value << " for " << expected;
}

TEST(RealTrace, StandardPresetHasTheErrorOfTheSpecification) {
  const Trace trace = read_trace(testing::small_trace());
  const std::map<int, double> expected = {{128, .0268}, {256, .0168}, {512, .0099}, {1024, .0044}};
  for (const auto& [budget, error] : expected) {
    const Metrics m = run(trace, "standard", budget)[0];
    expect_near_share(m.error_mean, error, 0.08);
    EXPECT_EQ(m.attended_tokens, 16 + budget + 128.5);  // pending grows from 1 to 256
  }
}

TEST(RealTrace, StandardPresetRecallsWhatTheSpecificationRecalls) {
  const Metrics m = run(read_trace(testing::small_trace()), "standard", 256)[0];
  expect_near_share(m.mass_recall, .9744, 0.002);
  expect_near_share(m.token_recall, .5367, 0.01);
  EXPECT_GT(m.hit_rate_r1, .45);
  EXPECT_LT(m.hit_rate_r1, .80);
  EXPECT_LT(m.hit_rate_r1, m.hit_rate_r2);
  EXPECT_LT(m.hit_rate_r2, m.hit_rate_r3);
}

TEST(RealTrace, HostResidencyChangesNothing) {
  const Trace trace = read_trace(testing::small_trace());
  const Metrics device = run(trace, "standard", 256)[0];
  const Metrics host = run(trace, "standard", 256, {.residency = Residency::kHost})[0];
  EXPECT_EQ(device.error_mean, host.error_mean);
  EXPECT_EQ(device.bytes_touched, host.bytes_touched);
}

TEST(RealTrace, LongerTraceHasTheErrorOfTheSpecification) {
  const auto path = testing::large_trace();
  if (!path) GTEST_SKIP() << "the 8k trace is not at hand (CLUSTERKV_TRACES_DIR)";
  const auto layers = run(read_trace(*path), "standard", 256);
  ASSERT_EQ(layers.size(), 2U);
  expect_near_share(layers[0].error_mean, .0229, 0.08);
  expect_near_share(layers[1].error_mean, .0198, 0.08);
}

/// Errors of one seed spread so widely at a budget of 128 (.076 to .35 over 60 seeds) that nine
/// seeds say nothing there; from 256 on their median is steady.
TEST(RealTrace, PaperPresetHasTheErrorOfThePaper) {
  const Trace trace = read_trace(testing::small_trace());
  const std::map<int, double> expected = {{256, .051}, {512, .028}, {1024, .012}};
  for (const auto& [budget, error] : expected) {
    std::vector<double> errors;
    for (std::uint64_t seed = 1; seed <= 9; ++seed) {
      errors.push_back(run(trace, "paper", budget, {.queries = 64, .seed = seed})[0].error_mean);
    }
    std::nth_element(errors.begin(), errors.begin() + 4, errors.end());
    EXPECT_GT(errors[4], 0.5 * error);
    EXPECT_LT(errors[4], 1.5 * error);
  }
}

}  // namespace
}  // namespace clusterkv::tool
