// SPDX-License-Identifier: Apache-2.0
//
// Records what the attention of a model sees of a text: a trace for `clusterkv replay`.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <exception>
#include <stdexcept>

#include "integrations/llama_cpp/recorder.hpp"
#include "integrations/llama_cpp/session.hpp"

namespace clusterkv::llama_cpp {
namespace {

struct Options {
  std::string model, text_file, out;
  std::vector<int> layers;
  int tokens = 4096, queries = 256, threads = 2;
};

void record(const Options& options) {
  if (options.queries >= options.tokens) throw std::runtime_error("--queries: fewer than --tokens");
  const Model model(options.model, "");
  Tokens tokens = model.tokenize(read_file(options.text_file), true);
  const auto count = static_cast<std::size_t>(options.tokens);
  if (tokens.size() < count) throw std::runtime_error("the text is too short");
  tokens.resize(count);
  Recorder recorder(options.layers, options.tokens - options.queries);
  Session session(model, {.context_tokens = options.tokens,
                          .threads = options.threads,
                          .on_node = Recorder::on_node,
                          .on_node_data = &recorder});
  session.read(tokens);
  recorder.write(options.out, tokens);
}

}  // namespace
}  // namespace clusterkv::llama_cpp

int main(int argc, char** argv) {
  using namespace clusterkv::llama_cpp;
  CLI::App app("Records the attention of a model while it reads a text");
  Options options;
  app.add_option("--model", options.model, "GGUF file")->required();
  app.add_option("--text", options.text_file, "text whose first tokens are read")->required();
  app.add_option("--out", options.out, "safetensors file")->required();
  app.add_option("--layers", options.layers, "of the model")->delimiter(',')->required();
  app.add_option("--tokens", options.tokens)->check(CLI::Range(2, 1 << 24));
  app.add_option("--queries", options.queries, "of the last tokens")->check(CLI::Range(1, 1 << 24));
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);
  try {
    record(options);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
