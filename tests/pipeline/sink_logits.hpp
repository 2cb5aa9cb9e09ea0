// SPDX-License-Identifier: Apache-2.0
//
// Learned sinks, on any backend.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/support/cache_fixture.hpp"

namespace clusterkv::testing {

/// A sink adds e^logit to the denominator and nothing else; padding stays empty.
template <class Place>
void expect_sinks_take_their_share(const CacheConfig& config) {
  Place place(config, PlanLimits{.max_rows = 2, .max_new_tokens = 400});
  Driver<ClusterKVCache>& driver = place.driver;
  const ModelShape& m = driver.cache.config().model;
  const SequenceId id = driver.add(7);
  driver.prefill(id, 150);
  driver.begin({{.id = id}, {}});
  driver.append_all();
  // Far below, about as large as, and far above the logits of tokens; and none.
  const std::vector<float> sinks = {-30.0F, 4.0F, 60.0F, -INFINITY};
  ASSERT_EQ(static_cast<int>(sinks.size()), m.num_q_heads);
  for (int layer = 0; layer < m.num_layers; ++layer) {
    const std::vector<float> query = driver.queries(layer);
    const Output without = driver.attend(layer, query);
    Output with;
    AttentionOut out = make_out(with, 2, m.num_q_heads, value_dim_of(m));
    out = {driver.placed(out.out), driver.placed(out.lse)};
    const TensorView logits =
        driver.placed(contiguous_view(sinks.data(), DType::kF32, {m.num_q_heads}));
    driver.cache.attend(layer, driver.plan, {driver.query_view(query), out, logits},
                        driver.stream_or_own({}));
    driver.wait();
    for (std::size_t head = 0; head < sinks.size(); ++head) {
      const double lse =
          std::log(std::exp(double{without.lse[head]}) + std::exp(double{sinks[head]}));
      const double share = std::exp(without.lse[head] - lse);
      EXPECT_NEAR(with.lse[head], lse, 1e-4) << layer << " " << head;
      for (int d = 0; d < value_dim_of(m); ++d) {
        const std::size_t at = head * static_cast<std::size_t>(value_dim_of(m)) + std::size_t(d);
        EXPECT_NEAR(with.out[at], share * without.out[at], 1e-5) << layer << " " << head;
      }
    }
    const Output padding = output_row(with, 1, m.num_q_heads);
    for (const float x : padding.out) EXPECT_EQ(x, 0.0F);
    for (const float x : padding.lse) EXPECT_EQ(x, -INFINITY);
  }
}

}  // namespace clusterkv::testing
