// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <exception>

#include "clusterkv/version.hpp"
#include "tools/clusterkv/commands.hpp"

int main(int argc, char** argv) {
  try {
    CLI::App app("ClusterKV: attention over a clustered KV cache");
    app.set_version_flag("--version", clusterkv::version());
    app.require_subcommand(1);
    clusterkv::tool::add_replay(app);
    clusterkv::tool::add_sweep(app);
    clusterkv::tool::add_inspect(app);
    clusterkv::tool::add_synth(app);
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      return app.exit(error);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "clusterkv: %s\n", error.what());
    return 1;
  }
  return 0;
}
