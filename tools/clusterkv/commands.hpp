// SPDX-License-Identifier: Apache-2.0
//
// The subcommands. Each adds its options to the app and sets what to run.
#pragma once

#include <CLI/CLI.hpp>

namespace clusterkv::tool {

void add_replay(CLI::App& app);
void add_sweep(CLI::App& app);
void add_inspect(CLI::App& app);
void add_synth(CLI::App& app);

}  // namespace clusterkv::tool
