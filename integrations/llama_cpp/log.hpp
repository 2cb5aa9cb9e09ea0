// SPDX-License-Identifier: Apache-2.0
//
// Messages go where the engine's own go.
#pragma once

#include <ggml.h>

#include <string_view>

namespace clusterkv::llama_cpp {

/// Passes "clusterkv: <text>\n" to the callback that ggml_log_set() was given.
void log(ggml_log_level level, std::string_view text) noexcept;

}  // namespace clusterkv::llama_cpp
