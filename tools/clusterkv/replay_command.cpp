// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <unistd.h>

#include <fstream>
#include <memory>

#include "clusterkv/error.hpp"
#include "tools/clusterkv/commands.hpp"
#include "tools/clusterkv/options.hpp"
#include "tools/clusterkv/progress.hpp"
#include "tools/clusterkv/report.hpp"

namespace clusterkv::tool {
namespace {

struct Options : CommonOptions {
  std::vector<std::string> presets = {"standard"};
  std::vector<int> budgets = {128, 256, 512, 1024};
  std::string json;
};

void run(const Options& options) {
  const Trace trace = read_trace(options.trace);
  const auto executor = make_thread_pool(options.threads);
  fmt::print("{}: {} tokens, {} query / {} KV heads, head_dim {}, {} threads\n", options.trace,
             trace.num_tokens, trace.num_q_heads, trace.num_kv_heads, trace.head_dim,
             executor->concurrency());
  std::vector<Metrics> rows;
  for (const std::string& preset : options.presets) {
    for (const int budget : options.budgets) {
      ProgressLine line(fmt::format("{} {}", preset, budget));
      const ReplayResult result = replay(trace, preset, budget, options.replay, *executor,
                                         [&](double share) { line.show(share); });
      rows.insert(rows.end(), result.layers.begin(), result.layers.end());
    }
  }
  fmt::print("{}", format_table(rows, isatty(STDOUT_FILENO) == 1));
  if (options.json.empty()) return;
  std::ofstream file(options.json);
  file << format_json(rows);
  file.flush();
  if (!file) throw FormatError(fmt::format("--json: {} can't be written", options.json));
}

}  // namespace

void add_replay(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("replay", "Attend along a recorded trace, beside full attention");
  add_trace_options(*command, *options);
  add_replay_options(*command, *options);
  add_cluster_options(*command, *options);
  command->add_option("--preset", options->presets, "standard, paper, or both")
      ->delimiter(',')
      ->check(CLI::IsMember({"standard", "paper"}));
  command->add_option("--budget", options->budgets, "Clustered rows attended a step")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--json", options->json, "Also write the table to this file, as JSON");
  command->callback([options] { run(*options); });
}

}  // namespace clusterkv::tool
