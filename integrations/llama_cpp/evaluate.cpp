// SPDX-License-Identifier: Apache-2.0
//
// The command line of Evaluation. scripts/evaluate_llama makes tables of its results.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <exception>
#include <fstream>
#include <stdexcept>

#include "integrations/llama_cpp/evaluation.hpp"

namespace clusterkv::llama_cpp {
namespace {

void add_options(CLI::App& app, EvaluationOptions& options) {
  app.add_option("--model", options.model, "GGUF file")->required();
  app.add_option("--plugin", options.plugin, "libggml-clusterkv.so")->required();
  app.add_option("--text", options.text_file, "text that passages are taken from")->required();
  app.add_option("--out", options.out, "JSON file for the results")->required();
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 1024));
  app.add_option("--budgets", options.budgets)->delimiter(',')->check(CLI::Range(1, 1 << 20));
  app.add_option("--presets", options.presets)->delimiter(',');
  app.add_flag("--other-path,!--no-other-path", options.other_path,
               "also the engine without flash attention, which wants a prefill of its own");
  app.require_subcommand(1);
  app.fallthrough();
  CLI::App* perplexity = app.add_subcommand("perplexity", "of the last tokens of passages");
  perplexity->add_option("--last", options.last, "tokens that are predicted");
  CLI::App* greedy = app.add_subcommand("greedy", "agreement with what the engine says");
  greedy->add_option("--tokens", options.greedy_tokens, "that the engine says after a passage");
  for (CLI::App* command : {perplexity, greedy}) {
    command->add_option("--context", options.context, "tokens of a passage");
    command->add_option("--passages", options.passages);
  }
  CLI::App* retrieval = app.add_subcommand("retrieval", "of a number that was hidden in a text");
  retrieval->add_option("--lengths", options.lengths, "tokens of a prompt")->delimiter(',');
  retrieval->add_option("--depths", options.depths, "places in the text");
  retrieval->add_option("--repeats", options.repeats, "passages of each length")->delimiter(',');
  CLI::App* speed = app.add_subcommand("speed", "of attention, with one thread up to --threads");
  speed->add_option("--contexts", options.contexts, "tokens before the first step")->delimiter(',');
  speed->add_option("--steps", options.steps, "decoded tokens")->check(CLI::Range(1, 1 << 16));
}

nlohmann::json evaluate(const CLI::App& app, const EvaluationOptions& options) {
  Evaluation evaluation(options);
  if (app.got_subcommand("perplexity")) return evaluation.perplexity();
  if (app.got_subcommand("greedy")) return evaluation.greedy();
  if (app.got_subcommand("retrieval")) return evaluation.retrieval();
  return evaluation.speed();
}

}  // namespace
}  // namespace clusterkv::llama_cpp

int main(int argc, char** argv) {
  using namespace clusterkv::llama_cpp;
  CLI::App app("What budgets do to the answers of a model in llama.cpp");
  EvaluationOptions options;
  add_options(app, options);
  CLI11_PARSE(app, argc, argv);
  try {
    const nlohmann::json results = evaluate(app, options);
    std::ofstream file(options.out);
    file << results.dump(1) << '\n';
    if (!file.flush()) throw std::runtime_error("cannot write " + options.out);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
