// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <memory>

#include "tools/clusterkv/commands.hpp"
#include "tools/clusterkv/progress.hpp"
#include "tools/clusterkv/synth.hpp"

namespace clusterkv::tool {

void add_synth(CLI::App& app) {
  struct Options : SynthOptions {
    std::string path;
  };
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("synth", "Write a synthetic trace, for speed and scale");
  command->add_option("out", o->path, "safetensors file to write")->required();
  command->add_option("--tokens", o->tokens, "Tokens, up to 1048576")->capture_default_str();
  command->add_option("--layers", o->layers)->capture_default_str();
  command->add_option("--q-heads", o->q_heads)->capture_default_str();
  command->add_option("--kv-heads", o->kv_heads)->capture_default_str();
  command->add_option("--head-dim", o->head_dim)->capture_default_str();
  command->add_option("--queries", o->queries, "Last tokens with a query")->capture_default_str();
  command->add_option("--seed", o->seed)->capture_default_str();
  command->callback([o] {
    {
      ProgressLine line("synth");
      write_synth(o->path, *o, [&](double share) { line.show(share); });
    }
    fmt::print("{}: {} synthetic tokens. Errors measured on them say nothing about a model.\n",
               o->path, o->tokens);
  });
}

}  // namespace clusterkv::tool
