// SPDX-License-Identifier: Apache-2.0
#include "tests/support/trace_replay.hpp"

#include <cstdlib>
#include <filesystem>

namespace clusterkv::testing {

std::string small_trace() {
  return CLUSTERKV_DATA_DIR "/smollm2-135m-genesis-4k-layer9.safetensors";
}

std::optional<std::string> large_trace() {
  const char* folder = std::getenv("CLUSTERKV_TRACES_DIR");
  const std::filesystem::path path =
      std::filesystem::path(folder != nullptr ? folder : CLUSTERKV_TRACES_DIR) /
      "smollm2-135m-genesis-8k.safetensors";
  if (!std::filesystem::exists(path)) return std::nullopt;
  return path.string();
}

}  // namespace clusterkv::testing
