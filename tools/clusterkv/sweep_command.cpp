// SPDX-License-Identifier: Apache-2.0
//
// The paper's experiments: how much clustering costs, what it buys, how often clusters repeat.
#include <fmt/format.h>

#include <memory>

#include "tools/clusterkv/commands.hpp"
#include "tools/clusterkv/options.hpp"
#include "tools/clusterkv/progress.hpp"

namespace clusterkv::tool {
namespace {

struct Options : CommonOptions {
  std::string what;
  std::string preset = "standard";
  int budget = 256;
};

class Sweep {
 public:
  explicit Sweep(const Options& options)
      : options_(options),
        trace_(read_trace(options.trace)),
        executor_(make_thread_pool(options.threads)) {}

  void clusters() {
    fmt::print("{:>16}{:>10}{:>8}{:>20}{:>10}{:>10}\n", "tokens/cluster", "clusters", "layer",
               "store + cluster ms", "error", "err p95");
    for (const int tokens : {4, 8, 16, 32, 64, 80, 128}) {
      ReplayOptions replay_options = options_.replay;
      replay_options.tokens_per_cluster = tokens;
      print_errors(tokens, replay_options);
    }
  }

  void iterations() {
    fmt::print("{:>16}{:>10}{:>8}{:>20}{:>10}{:>10}\n", "iterations", "clusters", "layer",
               "store + cluster ms", "error", "err p95");
    for (const int count : {1, 2, 4, 6, 10, 20}) {
      ReplayOptions replay_options = options_.replay;
      replay_options.iterations = count;
      print_errors(count, replay_options);
    }
  }

  void retain() {
    const ReplayResult result = run(options_.replay);
    fmt::print("{:>8}{:>8}{:>12}{:>18}\n", "layer", "R", "hit rate", "link bytes/step");
    for (std::size_t i = 0; i < result.layers.size(); ++i) {
      for (const RetainPoint& point : result.retain[i]) {
        fmt::print("{:>8}{:>8}{:>12.3f}{:>18.0f}\n", result.layers[i].layer, point.steps,
                   point.hit_rate, point.link_bytes);
      }
    }
  }

 private:
  ReplayResult run(const ReplayOptions& replay_options) {
    ProgressLine line(options_.what);
    return replay(trace_, options_.preset, options_.budget, replay_options, *executor_,
                  [&](double share) { line.show(share); });
  }

  void print_errors(int value, const ReplayOptions& replay_options) {
    const ReplayResult result = run(replay_options);
    for (const Metrics& m : result.layers) {
      fmt::print("{:>16}{:>10}{:>8}{:>20.1f}{:>10.4f}{:>10.4f}\n", value, result.clusters, m.layer,
                 result.prefill_ms, m.error_mean, m.error_p95);
    }
  }

  const Options& options_;
  Trace trace_;
  std::unique_ptr<Executor> executor_;
};

void run(const Options& options) {
  Sweep sweep(options);
  if (options.what == "clusters") sweep.clusters();
  if (options.what == "iterations") sweep.iterations();
  if (options.what == "retain") sweep.retain();
}

}  // namespace

void add_sweep(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "sweep", "Error and time against clusters or iterations; hit rates against steps retained");
  command->add_option("what", options->what, "clusters, iterations or retain")
      ->required()
      ->check(CLI::IsMember({"clusters", "iterations", "retain"}));
  add_trace_options(*command, *options);
  add_replay_options(*command, *options);
  add_cluster_options(*command, *options);
  command->add_option("--preset", options->preset, "standard or paper")
      ->check(CLI::IsMember({"standard", "paper"}));
  command->add_option("--budget", options->budget, "Clustered rows attended a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->callback([options] { run(*options); });
}

}  // namespace clusterkv::tool
