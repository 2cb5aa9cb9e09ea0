// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "tools/clusterkv/replay.hpp"

namespace clusterkv::tool {

/// What replay and sweep share.
struct CommonOptions {
  std::string trace;
  int threads = 0;
  ReplayOptions replay;
};

/// `options` must outlive the parsing of `command`.
void add_common_options(CLI::App& command, CommonOptions& options);

}  // namespace clusterkv::tool
