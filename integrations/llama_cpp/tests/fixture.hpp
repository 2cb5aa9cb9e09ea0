// SPDX-License-Identifier: Apache-2.0
//
// A script of decodes, run by the engine's own attention and by the plugin.
#pragma once

#include <fmt/format.h>
#include <ggml-backend.h>
#include <gtest/gtest.h>

#include <string>

#include "integrations/llama_cpp/tests/engine.hpp"

namespace clusterkv::llama_cpp::testing {

using Script = std::function<void(Engine&)>;

/// The distance of each row of logits, for messages.
inline std::string by_row(const std::vector<float>& a, const std::vector<float>& b) {
  std::string text = "; rows:";
  for (std::size_t i = 0; i + kVocab <= std::min(a.size(), b.size()); i += kVocab) {
    const auto row = [&](const std::vector<float>& logits) {
      return std::vector<float>(logits.begin() + static_cast<std::ptrdiff_t>(i),
                                logits.begin() + static_cast<std::ptrdiff_t>(i + kVocab));
    };
    text += fmt::format(" {:.1e}", distance(row(a), row(b)));
  }
  return text;
}

struct Result {
  std::vector<float> logits;
  std::string log;  ///< of the plugin: its summary

  /// A number of the summary, such as cache_rows.
  [[nodiscard]] double stat(const std::string& name) const {
    const std::string key = " " + name + "=";
    const auto at = log.find(key);
    EXPECT_NE(at, std::string::npos) << name << " in " << log;
    return at == std::string::npos ? -1 : std::stod(log.substr(at + key.size()));
  }
};

class PluginTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    take_log();
    static ggml_backend_reg_t plugin = ggml_backend_load(CLUSTERKV_PLUGIN);
    ASSERT_NE(plugin, nullptr) << take_log();
  }

  /// \param budget  of the plugin
  static Result run(const ModelSpec& spec, EngineOptions options, const Script& script,
                    int budget = 1 << 20) {
    const ModelPtr model = make_model(spec);
    const bool has_plugin = options.attention == Attention::kPlugin;
    const Variable budget_variable("CLUSTERKV_BUDGET", has_plugin ? std::to_string(budget) : "0");
    const Variable stats("CLUSTERKV_STATS", has_plugin ? "1" : "0");
    Result result;
    {
      Engine engine(model.get(), options);
      take_log();
      script(engine);
      result.logits = engine.logits();
    }
    result.log = take_log();
    return result;
  }

  /// With a budget above all tokens, the plugin must be as near to the engine's flash attention as the
  /// engine's other path is.
  static Result expect_equal(const ModelSpec& spec, EngineOptions options, const Script& script) {
    const auto with = [&](Attention attention) {
      EngineOptions own = options;
      own.attention = attention;
      return run(spec, own, script);
    };
    const Result flash = with(Attention::kFlash), plain = with(Attention::kNoFlash);
    const Result ours = with(Attention::kPlugin);
    const double noise = distance(plain.logits, flash.logits);
    const double error = distance(ours.logits, flash.logits);
    const double error_plain = distance(ours.logits, plain.logits);
    ::testing::Test::RecordProperty("noise", fmt::format("{:.2e}", noise));
    ::testing::Test::RecordProperty("error", fmt::format("{:.2e}", error));
    EXPECT_GT(noise, 0.0);
    EXPECT_LT(noise, 1e-2);
    EXPECT_LE(error, 1.25 * noise) << "noise " << noise << by_row(ours.logits, flash.logits);
    EXPECT_LE(error_plain, 1.25 * noise) << "noise " << noise;
    EXPECT_GT(ours.stat("cache_rows"), 0.0);
    EXPECT_EQ(ours.stat("refused_steps"), 0.0) << ours.log;
    return ours;
  }
};

}  // namespace clusterkv::llama_cpp::testing
