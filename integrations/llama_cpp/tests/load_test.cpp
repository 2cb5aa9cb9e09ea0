// SPDX-License-Identifier: Apache-2.0
//
// Loading: versions, settings, and a model from a file.
#include <gmock/gmock.h>

#include <cstdio>

#include "integrations/llama_cpp/tests/fixture.hpp"

namespace clusterkv::llama_cpp::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Load, AnotherVersionOfGgmlIsRefused) {
  take_log();
  EXPECT_EQ(ggml_backend_load(CLUSTERKV_OLD_PLUGIN), nullptr);
  EXPECT_THAT(take_log(), AllOf(HasSubstr("built for ggml 0.0.1"), HasSubstr(ggml_version())));
}

TEST(Load, BadSettingsAreRefused) {
  take_log();
  const Variable budget("CLUSTERKV_BUDGET", "lots");
  EXPECT_EQ(ggml_backend_load(CLUSTERKV_PLUGIN), nullptr);
  EXPECT_THAT(take_log(), HasSubstr("CLUSTERKV_BUDGET: \"lots\", expected a whole number"));
}

TEST_F(PluginTest, IsADeviceBesideTheCpu) {
  ggml_backend_dev_t device = ggml_backend_dev_by_name("ClusterKV");
  ASSERT_NE(device, nullptr);
  EXPECT_EQ(ggml_backend_dev_type(device), GGML_BACKEND_DEVICE_TYPE_ACCEL);
}

TEST_F(PluginTest, SettingsThatTurnBadFailTheNextContext) {
  const ModelPtr model = make_model({});
  const Variable preset("CLUSTERKV_PRESET", "fast");
  try {
    Engine engine(model.get(), {});
    ADD_FAILURE() << "a context was made";
  } catch (const std::exception& error) {
    EXPECT_THAT(error.what(), HasSubstr("CLUSTERKV_PRESET: \"fast\", expected standard or paper"));
  }
}

TEST_F(PluginTest, TakesUpAModelFromAFile) {
  const std::string path = ::testing::TempDir() + "clusterkv_llama_load_test.gguf";
  llama_model_save_to_file(make_model({}).get(), path.c_str());
  const ModelPtr model(llama_model_load_from_file(path.c_str(), llama_model_default_params()),
                       llama_model_free);
  std::remove(path.c_str());
  ASSERT_NE(model, nullptr) << take_log();
  const Variable stats("CLUSTERKV_STATS", "1");
  take_log();
  {
    Engine engine(model.get(), {});
    engine.prompt(0, 0, 100, 1);
    for (int i = 0; i < 3; ++i) engine.token(0, 100 + i, i);
  }
  EXPECT_THAT(take_log(), HasSubstr("cache_rows=2 "));
}

}  // namespace
}  // namespace clusterkv::llama_cpp::testing
