// SPDX-License-Identifier: Apache-2.0
//
// A long prompt and its greedy completion in llama.cpp, with or without the plugin.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <exception>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>

#include "integrations/llama_cpp/session.hpp"

namespace clusterkv::llama_cpp {
namespace {

struct Options {
  std::string model, plugin, text_file, ask, state;
  bool no_flash = false;
  int prompt_tokens = 7000, tokens = 48, threads = 2, batch = 512;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The first tokens of the text, with the question last.
Tokens make_prompt(const Model& model, const Options& options) {
  Tokens prompt = model.tokenize(read_file(options.text_file), true);
  Tokens last;
  if (!options.ask.empty()) {
    last = model.tokenize("\n\nQuestion: " + options.ask + "\nAnswer:", false);
  }
  const auto room = static_cast<std::size_t>(options.prompt_tokens);
  if (room <= last.size()) throw std::runtime_error("--prompt-tokens: no room for the question");
  prompt.resize(std::min(prompt.size(), room - last.size()));
  prompt.insert(prompt.end(), last.begin(), last.end());
  return prompt;
}

/// All of the prompt but its last token: from the state that another run left, or computed.
void read_prompt(Session& session, const Tokens& prompt, const Options& options) {
  const auto all = std::span(prompt).first(prompt.size() - 1);
  Tokens saved(prompt.size());
  std::size_t count = 0;
  if (std::filesystem::exists(options.state) &&
      llama_state_load_file(session.get(), options.state.c_str(), saved.data(), saved.size(),
                            &count)) {
    saved.resize(count);
    if (!std::equal(saved.begin(), saved.end(), all.begin(), all.end())) {
      throw std::runtime_error(options.state + " is of another prompt");
    }
    fmt::print("prompt: {} tokens, taken from {}\n", prompt.size(), options.state);
    return;
  }
  const auto start = std::chrono::steady_clock::now();
  session.read(all);
  const double seconds = seconds_since(start);
  fmt::print("prompt: {} tokens, {:.2f} s, {:.1f} tokens/s\n", prompt.size(), seconds,
             static_cast<double>(all.size()) / seconds);
  if (!options.state.empty() &&
      !llama_state_save_file(session.get(), options.state.c_str(), all.data(), all.size())) {
    throw std::runtime_error("cannot write " + options.state);
  }
}

void complete(const Model& model, const Options& options) {
  Session session(model, {.context_tokens = options.prompt_tokens + options.tokens + 8,
                          .threads = options.threads,
                          .batch = options.batch,
                          .flash = !options.no_flash});
  const Tokens prompt = make_prompt(model, options);
  read_prompt(session, prompt, options);
  // With the plugin, the first step learns the layers, the second sees the prompt and the third clusters
  // it: timed apart.
  constexpr int kFirst = 3;
  std::string text;
  double first_seconds = 0;
  auto start = std::chrono::steady_clock::now();
  llama_token token = prompt.back();
  int steps = 0;
  for (; steps < options.tokens; ++steps) {
    session.read({&token, 1});
    if (steps + 1 == kFirst) {
      first_seconds = seconds_since(start);
      start = std::chrono::steady_clock::now();
    }
    token = session.most_likely();
    if (llama_vocab_is_eog(model.vocab(), token)) break;
    text += model.text_of(token);
  }
  if (steps > kFirst) {
    const double seconds = seconds_since(start);
    fmt::print("first {} tokens: {:.3f} s\n", kFirst, first_seconds);
    fmt::print("decode: {} tokens, {:.2f} s, {:.2f} tokens/s\n", steps - kFirst, seconds,
               (steps - kFirst) / seconds);
  }
  fmt::print("output: {}\n", text);
}

}  // namespace
}  // namespace clusterkv::llama_cpp

int main(int argc, char** argv) {
  using namespace clusterkv::llama_cpp;
  CLI::App app("Completes a long text in llama.cpp");
  Options options;
  app.add_option("--model", options.model, "GGUF file")->required();
  app.add_option("--text", options.text_file, "text that the prompt is taken from")->required();
  app.add_option("--plugin", options.plugin,
                 "libggml-clusterkv.so; without it the engine is alone");
  app.add_option("--ask", options.ask, "question after the text");
  app.add_option("--state", options.state,
                 "file for the engine's state after the prompt: read if it is there, else written");
  app.add_flag("--no-flash", options.no_flash, "the engine's other attention; not with a plugin");
  app.add_option("--prompt-tokens", options.prompt_tokens)->check(CLI::Range(16, 1 << 24));
  app.add_option("--tokens", options.tokens, "to generate")->check(CLI::Range(1, 1 << 20));
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 1024));
  app.add_option("--batch", options.batch)->check(CLI::Range(1, 1 << 16));
  CLI11_PARSE(app, argc, argv);
  try {
    const Model model(options.model, options.plugin);
    complete(model, options);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
