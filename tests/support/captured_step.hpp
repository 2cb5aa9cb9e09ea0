// SPDX-License-Identifier: Apache-2.0
//
// A decode step in a graph of the stand-in for CUDA's runtime.
#pragma once

#ifdef CLUSTERKV_SIMT
#include <algorithm>
#include <simt/streams.hpp>
#include <vector>

#include "tests/support/cache_fixture.hpp"

namespace clusterkv::testing {

/// All layers of a step, captured once with buffers that stay.
/// \param prefetches  each layer is prefetched before the one before it attends, with its own queries
class CapturedStep {
 public:
  CapturedStep(Driver<ClusterKVCache>& driver, void* stream, bool prefetches = false)
      : driver_(driver), stream_(stream) {
    const ModelShape& m = driver.cache.config().model;
    const auto rows = static_cast<std::size_t>(driver.plan.num_rows());
    for (int layer = 0; layer < m.num_layers; ++layer) {
      layers_.push_back({});
      for (auto* rows_of : {&layers_.back().key, &layers_.back().value}) {
        rows_of->resize(rows * static_cast<std::size_t>(m.num_kv_heads * m.head_dim));
      }
      layers_.back().query.resize(rows * static_cast<std::size_t>(m.num_q_heads * m.head_dim));
    }
    ::simt::begin_capture(stream);
    for (int i = 0; i < m.num_layers; ++i) {
      Layer& layer = layers_[static_cast<std::size_t>(i)];
      driver.cache.append(i, driver.plan, driver.kv_view(layer.key), driver.kv_view(layer.value),
                          driver.stream_or_own({}));
      if (prefetches && i + 1 < m.num_layers) {
        const Layer& next = layers_[static_cast<std::size_t>(i) + 1];
        driver.cache.prefetch(i + 1, driver.plan, driver.query_view(next.query),
                              driver.stream_or_own({}));
      }
      AttentionOut out = make_out(layer.output, driver.plan.num_rows(), m.num_q_heads, m.head_dim);
      out = {driver.placed(out.out), driver.placed(out.lse)};
      driver.cache.attend(i, driver.plan, {driver.query_view(layer.query), out},
                          driver.stream_or_own({}));
    }
    graph_ = ::simt::end_capture(stream);
  }

  /// The step that the driver has begun.
  std::vector<Output> replay() {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      // Where the graph reads them.
      const auto [key, value] = driver_.new_rows(static_cast<int>(i));
      std::copy(key.begin(), key.end(), layers_[i].key.begin());
      std::copy(value.begin(), value.end(), layers_[i].value.begin());
      const std::vector<float> query = driver_.queries(static_cast<int>(i));
      std::copy(query.begin(), query.end(), layers_[i].query.begin());
    }
    ::simt::replay(graph_, stream_);
    driver_.wait();
    std::vector<Output> outputs;
    for (const Layer& layer : layers_) outputs.push_back(layer.output);
    return outputs;
  }

 private:
  struct Layer {
    std::vector<float> key, value, query;
    Output output;
  };
  Driver<ClusterKVCache>& driver_;
  void* stream_;
  std::vector<Layer> layers_;
  ::simt::Graph graph_;
};

}  // namespace clusterkv::testing
#endif
