// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "tools/clusterkv/replay.hpp"

namespace clusterkv::tool {

/// What the commands that read a trace share.
struct CommonOptions {
  std::string trace;
  int threads = 0;
  ReplayOptions replay;
};

// `options` must outlive the parsing of `command`.

/// The trace, its layers, threads.
void add_trace_options(CLI::App& command, CommonOptions& options);
/// How keys are clustered.
void add_cluster_options(CLI::App& command, CommonOptions& options);
/// How queries are replayed, and what holds the rows.
void add_replay_options(CLI::App& command, CommonOptions& options);

}  // namespace clusterkv::tool
