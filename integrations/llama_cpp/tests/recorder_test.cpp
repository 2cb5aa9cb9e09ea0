// SPDX-License-Identifier: Apache-2.0
//
// Recorded attention inputs, against the engine's attention over them.
#include <gmock/gmock.h>

#include <cmath>
#include <cstdio>
#include <numeric>

#include "integrations/llama_cpp/recorder.hpp"
#include "integrations/llama_cpp/tests/fixture.hpp"
#include "tools/clusterkv/trace.hpp"

namespace clusterkv::llama_cpp::testing {
namespace {

using ::testing::HasSubstr;

constexpr int kLayer = 2, kTokens = 300, kQueryStart = 130;

/// Records, and keeps what the engine's attention of the layer gave: [token, q_head, head_dim].
struct Listener {
  Recorder recorder;
  std::vector<float> outs;

  static bool on_node(ggml_tensor* node, bool ask, void* data) {
    auto& self = *static_cast<Listener*>(data);
    const bool wanted = Recorder::on_node(node, ask, &self.recorder);
    const bool is_attention = node->op == GGML_OP_FLASH_ATTN_EXT &&
                              node->src[1]->view_src->name == fmt::format("cache_k_l{}", kLayer);
    if (!ask && is_attention) {
      const auto* rows = static_cast<const float*>(node->data);
      self.outs.insert(self.outs.end(), rows, rows + ggml_nelements(node));
    }
    return wanted;
  }
};

std::vector<std::int32_t> numbers() {
  std::vector<std::int32_t> tokens(kTokens);
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

/// Softmax attention in fp64 of the query `row`, which may attend to its own token and all before it.
std::vector<float> attend(const tool::Trace& trace, const tool::TraceLayer& layer, int row) {
  const auto floats = [](const TensorView& tensor) {
    std::vector<float> all(static_cast<std::size_t>(tensor.shape[0] * tensor.stride[0]));
    tool::widen(tensor, all);
    return all;
  };
  const auto keys = floats(layer.key), values = floats(layer.value), queries = floats(layer.query);
  const int dim = trace.head_dim, group = trace.num_q_heads / trace.num_kv_heads;
  std::vector<float> outs;
  for (int head = 0; head < trace.num_q_heads; ++head) {
    const float* query = queries.data() + (row * trace.num_q_heads + head) * dim;
    std::vector<double> sum(static_cast<std::size_t>(dim));
    double total = 0;
    for (int token = 0; token <= trace.query_start + row; ++token) {
      const auto at = (token * trace.num_kv_heads + head / group) * dim;
      const double dot = std::inner_product(query, query + dim, keys.data() + at, 0.0);
      double logit = dot * trace.softmax_scale;
      if (trace.logit_softcap > 0) {
        logit = trace.logit_softcap * std::tanh(logit / trace.logit_softcap);
      }
      const double share = std::exp(logit);
      total += share;
      for (int i = 0; i < dim; ++i) {
        sum[static_cast<std::size_t>(i)] += share * values[static_cast<std::size_t>(at + i)];
      }
    }
    for (const double x : sum) outs.push_back(static_cast<float>(x / total));
  }
  return outs;
}

class RecorderTest : public PluginTest {
 protected:
  /// Reads a text of two batches and more.
  static void read(Listener& listener, const ModelSpec& spec) {
    const Variable budget("CLUSTERKV_BUDGET", "0");
    const ModelPtr model = make_model(spec);
    Engine engine(model.get(), {.on_node = Listener::on_node, .on_node_data = &listener});
    engine.prompt(0, 0, kTokens, 1);
  }
};

class RecorderOf : public RecorderTest, public ::testing::WithParamInterface<ModelSpec> {};

TEST_P(RecorderOf, ALayerGivesTheEnginesAttention) {
  Listener listener{Recorder(std::vector{kLayer}, kQueryStart)};
  const ModelSpec& spec = GetParam();
  read(listener, spec);
  const std::string path = ::testing::TempDir() + "clusterkv_llama_recorder_test_" +
                           (spec.softcap > 0 ? "capped" : "not_capped") + ".safetensors";
  listener.recorder.write(path, numbers());
  const tool::Trace trace = tool::read_trace(path);
  std::remove(path.c_str());
  ASSERT_EQ(trace.layers.size(), 1U);
  EXPECT_EQ(trace.layers[0].id, kLayer);
  EXPECT_EQ(trace.num_tokens, kTokens);
  EXPECT_EQ(trace.num_queries, kTokens - kQueryStart);
  EXPECT_EQ(trace.num_kv_heads, spec.num_kv_heads);
  const std::size_t width = static_cast<std::size_t>(spec.num_q_heads * spec.head_dim);
  ASSERT_EQ(listener.outs.size(), width * kTokens);
  for (const int row : {0, 1, 100, trace.num_queries - 1}) {
    const auto begin =
        listener.outs.begin() + static_cast<std::ptrdiff_t>(width) * (kQueryStart + row);
    const std::vector<float> engine(begin, begin + static_cast<std::ptrdiff_t>(width));
    EXPECT_LT(distance(attend(trace, trace.layers[0], row), engine), 3e-3) << row;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RecorderOf,
                         ::testing::Values(ModelSpec{},
                                           ModelSpec{.num_layers = 4, .softcap = 0.02F}),
                         [](const auto& test) {
                           return test.param.softcap > 0 ? "capped" : "not_capped";
                         });

TEST_F(RecorderTest, WhatTheFormatCannotSayIsRefused) {
  const auto problem = [](const ModelSpec& spec, int layer) {
    Listener listener{Recorder(std::vector{layer}, kQueryStart)};
    read(listener, spec);
    try {
      listener.recorder.write(::testing::TempDir() + "never_written", numbers());
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  EXPECT_THAT(problem({}, 7),
              HasSubstr("layer 7 cannot be recorded: the engine showed no attention"));
  EXPECT_THAT(problem({.window = 64}, 2), HasSubstr("layer 2 cannot be recorded: token"));
  EXPECT_THAT(problem({.has_sinks = true}, 2), HasSubstr("learned sinks"));
}

}  // namespace
}  // namespace clusterkv::llama_cpp::testing
