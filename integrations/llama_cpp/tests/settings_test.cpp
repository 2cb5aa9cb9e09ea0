// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/settings.hpp"

#include <gmock/gmock.h>

#include <map>
#include <string>

#include "clusterkv/error.hpp"

namespace clusterkv::llama_cpp {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using Environment = std::map<std::string, std::string>;

Settings read(const Environment& environment) {
  return Settings::read([&](const char* name) -> const char* {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

constexpr ModelShape kModel{.num_layers = 1, .num_q_heads = 4, .num_kv_heads = 2, .head_dim = 64};

TEST(Settings, WithoutVariablesThePresetStandsAsItIs) {
  const auto config = read({}).config(kModel);
  const auto preset = CacheConfig::standard(kModel);
  EXPECT_EQ(config.select.budget_tokens, preset.select.budget_tokens);
  EXPECT_EQ(config.select.dense_layers, preset.select.dense_layers);
  EXPECT_EQ(config.cluster.tokens_per_cluster, preset.cluster.tokens_per_cluster);
  EXPECT_TRUE(read({}).takes_over());
}

TEST(Settings, VariablesAreTakenOver) {
  const Settings settings = read({{"CLUSTERKV_BUDGET", "256"},
                                  {"CLUSTERKV_PRESET", "paper"},
                                  {"CLUSTERKV_DENSE_LAYERS", "5"},
                                  {"CLUSTERKV_MAX_TOKENS", "9000"},
                                  {"CLUSTERKV_MAX_SEQUENCES", "3"},
                                  {"CLUSTERKV_STORE", "host"},
                                  {"CLUSTERKV_ROWS", "engine"},
                                  {"CLUSTERKV_STATS", "1"}});
  const auto config = settings.config(kModel);
  EXPECT_EQ(config.select.budget_tokens, 256);
  EXPECT_EQ(config.select.grouping, HeadGrouping::kPerQueryHead);
  EXPECT_EQ(config.select.dense_layers, 5);
  EXPECT_EQ(config.store.residency, Residency::kHost);
  EXPECT_EQ(settings.first_layer(), 5);
  EXPECT_EQ(settings.max_tokens, 9000);
  EXPECT_EQ(settings.max_sequences, 3);
  EXPECT_TRUE(settings.stats);
  EXPECT_TRUE(settings.engine_rows);
}

TEST(Settings, ABudgetOfZeroTakesOverNothing) {
  EXPECT_FALSE(read({{"CLUSTERKV_BUDGET", "0"}}).takes_over());
}

TEST(Settings, BadValuesAreRefusedByName) {
  const std::map<std::string, std::vector<std::string>> bad = {
      {"CLUSTERKV_BUDGET", {"", "many", "-1", "12x", "99999999999999999999"}},
      {"CLUSTERKV_PRESET", {"", "Paper"}},
      {"CLUSTERKV_DENSE_LAYERS", {"-2", "1.5"}},
      {"CLUSTERKV_MAX_TOKENS", {"0", "4294967296"}},
      {"CLUSTERKV_MAX_SEQUENCES", {"0", "1025"}},
      {"CLUSTERKV_STORE", {"gpu"}},
      {"CLUSTERKV_ROWS", {"both"}},
      {"CLUSTERKV_STATS", {"yes"}}};
  for (const auto& [name, values] : bad) {
    for (const auto& value : values) {
      try {
        read({{name, value}});
        ADD_FAILURE() << name << "=" << value << " was taken";
      } catch (const ConfigError& error) {
        EXPECT_THAT(error.what(),
                    AllOf(HasSubstr(name), HasSubstr('"' + value + '"'), HasSubstr("expected")));
      }
    }
  }
}

}  // namespace
}  // namespace clusterkv::llama_cpp
