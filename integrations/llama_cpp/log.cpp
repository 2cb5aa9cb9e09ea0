// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/log.hpp"

#include <exception>
#include <string>

namespace clusterkv::llama_cpp {

void log(ggml_log_level level, std::string_view text) noexcept {
  ggml_log_callback callback = nullptr;
  void* user_data = nullptr;
  ggml_log_get(&callback, &user_data);
  if (callback == nullptr) return;
  try {
    callback(level, ("clusterkv: " + std::string(text) + "\n").c_str(), user_data);
  } catch (const std::exception&) {
    callback(level, "clusterkv: a message was lost, no memory\n", user_data);
  }
}

}  // namespace clusterkv::llama_cpp
