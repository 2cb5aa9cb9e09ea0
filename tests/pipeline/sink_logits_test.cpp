// SPDX-License-Identifier: Apache-2.0
//
// Learned sinks on the CPU backend.
#include "tests/pipeline/sink_logits.hpp"

namespace clusterkv::testing {
namespace {

struct OnHost {
  OnHost(const CacheConfig& config, const PlanLimits& limits) : driver(config, limits) {}
  Driver<ClusterKVCache> driver;
};

TEST(SinkLogits, TakeTheirShare) {
  for (const Tail tail : {Tail::kNone, Tail::kSecondMoment}) {
    CacheConfig config = small_config(small_model(2, 4, 2, 64));
    config.select.dense_layers = 1;
    config.select.tail = tail;
    config.model.value_dim = tail == Tail::kNone ? 128 : 0;
    config.cluster.window_tokens = 12;
    expect_sinks_take_their_share<OnHost>(config);
  }
}

}  // namespace
}  // namespace clusterkv::testing
