// SPDX-License-Identifier: Apache-2.0
//
// The replay measures what an independent NumPy form of the algorithm measures. Bands for all budgets
// and presets: tests/pipeline/recorded_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/data.hpp"
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

TEST(RealTrace, StandardPresetRecallsWhatTheSpecificationRecalls) {
  const Metrics m = run(read_trace(testing::small_trace()), "standard", 256)[0];
  expect_near_share(m.error_mean, .0168, 0.01);
  expect_near_share(m.error_p95, .0705, 0.01);
  EXPECT_EQ(m.attended_tokens, 16 + 256 + 128.5);  // pending grows from 1 to 256
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

}  // namespace
}  // namespace clusterkv::tool
