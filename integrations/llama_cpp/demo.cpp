// SPDX-License-Identifier: Apache-2.0
//
// A long prompt and its greedy completion in llama.cpp, with or without the plugin.
#include <fmt/format.h>
#include <ggml-backend.h>
#include <llama.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

struct Options {
  std::string model, plugin, text_file, ask, state;
  bool no_flash = false;
  int prompt_tokens = 7000, tokens = 48, threads = 2, batch = 512;
};

using Model = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using EngineContext = std::unique_ptr<llama_context, decltype(&llama_free)>;

/// The plugin's messages and the engine's complaints; all else is not of interest here.
void show(ggml_log_level level, const char* text, void*) {
  const bool is_ours = std::string_view(text).starts_with("clusterkv:");
  if (is_ours || level == GGML_LOG_LEVEL_ERROR) fmt::print("{}", text);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<llama_token> tokenize(const llama_vocab* vocab, const std::string& text, bool begins) {
  std::vector<llama_token> tokens(text.size() + 8);
  const auto count =
      llama_tokenize(vocab, text.data(), static_cast<std::int32_t>(text.size()), tokens.data(),
                     static_cast<std::int32_t>(tokens.size()), begins, true);
  if (count < 0) throw std::runtime_error("the text cannot be tokenized");
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

std::string to_text(const llama_vocab* vocab, llama_token token) {
  std::string text(64, '\0');
  const auto size = llama_token_to_piece(vocab, token, text.data(),
                                         static_cast<std::int32_t>(text.size()), 0, true);
  text.resize(static_cast<std::size_t>(std::max(0, size)));
  return text;
}

/// The first tokens of the text, with the question last.
std::vector<llama_token> make_prompt(const llama_vocab* vocab, const Options& options) {
  auto prompt = tokenize(vocab, read_file(options.text_file), true);
  std::vector<llama_token> last;
  if (!options.ask.empty()) {
    last = tokenize(vocab, "\n\nQuestion: " + options.ask + "\nAnswer:", false);
  }
  const auto room = static_cast<std::size_t>(options.prompt_tokens);
  if (room <= last.size()) throw std::runtime_error("--prompt-tokens: no room for the question");
  prompt.resize(std::min(prompt.size(), room - last.size()));
  prompt.insert(prompt.end(), last.begin(), last.end());
  return prompt;
}

EngineContext make_context(llama_model* model, const Options& options) {
  auto params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(options.prompt_tokens + options.tokens + 8);
  params.n_batch = params.n_ubatch = static_cast<std::uint32_t>(options.batch);
  params.n_threads = params.n_threads_batch = options.threads;
  // With AUTO the engine would not use a plugin.
  params.flash_attn_type =
      options.no_flash ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_ENABLED;
  EngineContext context(llama_init_from_model(model, params), llama_free);
  if (!context) throw std::runtime_error("no context could be made");
  return context;
}

void decode(llama_context* context, llama_token* tokens, int count) {
  if (llama_decode(context, llama_batch_get_one(tokens, count)) != 0) {
    throw std::runtime_error("the engine could not decode");
  }
}

llama_token most_likely(llama_context* context, const llama_vocab* vocab) {
  const float* logits = llama_get_logits_ith(context, -1);
  return static_cast<llama_token>(std::max_element(logits, logits + llama_vocab_n_tokens(vocab)) -
                                  logits);
}

/// All of the prompt but its last token: from the state that another run left, or computed.
void read_prompt(llama_context* context, std::vector<llama_token> prompt, const Options& options) {
  const int length = static_cast<int>(prompt.size()) - 1;
  std::vector<llama_token> saved(prompt.size());
  std::size_t count = 0;
  if (std::filesystem::exists(options.state) &&
      llama_state_load_file(context, options.state.c_str(), saved.data(), saved.size(), &count)) {
    saved.resize(count);
    prompt.pop_back();
    if (saved != prompt) throw std::runtime_error(options.state + " is of another prompt");
    fmt::print("prompt: {} tokens, taken from {}\n", length + 1, options.state);
    return;
  }
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < length; i += options.batch) {
    decode(context, prompt.data() + i, std::min(options.batch, length - i));
  }
  const double seconds = seconds_since(start);
  fmt::print("prompt: {} tokens, {:.2f} s, {:.1f} tokens/s\n", length + 1, seconds,
             length / seconds);
  if (!options.state.empty() &&
      !llama_state_save_file(context, options.state.c_str(), prompt.data(), prompt.size() - 1)) {
    throw std::runtime_error("cannot write " + options.state);
  }
}

void complete(llama_context* context, const llama_vocab* vocab, const Options& options) {
  const auto prompt = make_prompt(vocab, options);
  read_prompt(context, prompt, options);
  // With the plugin, the first step learns the layers, the second sees the prompt and the third clusters
  // it: timed apart.
  constexpr int kFirst = 3;
  std::string text;
  double first_seconds = 0;
  auto start = std::chrono::steady_clock::now();
  llama_token token = prompt.back();
  int steps = 0;
  for (; steps < options.tokens; ++steps) {
    decode(context, &token, 1);
    if (steps + 1 == kFirst) {
      first_seconds = seconds_since(start);
      start = std::chrono::steady_clock::now();
    }
    token = most_likely(context, vocab);
    if (llama_vocab_is_eog(vocab, token)) break;
    text += to_text(vocab, token);
  }
  if (steps > kFirst) {
    const double seconds = seconds_since(start);
    fmt::print("first {} tokens: {:.3f} s\n", kFirst, first_seconds);
    fmt::print("decode: {} tokens, {:.2f} s, {:.2f} tokens/s\n", steps - kFirst, seconds,
               (steps - kFirst) / seconds);
  }
  fmt::print("output: {}\n", text);
}

void run(const Options& options) {
  llama_log_set(show, nullptr);
  llama_backend_init();
  if (!options.plugin.empty() && ggml_backend_load(options.plugin.c_str()) == nullptr) {
    throw std::runtime_error("the plugin was not loaded");
  }
  const Model model(llama_model_load_from_file(options.model.c_str(), llama_model_default_params()),
                    llama_model_free);
  if (!model) throw std::runtime_error("cannot load " + options.model);
  const auto context = make_context(model.get(), options);
  complete(context.get(), llama_model_get_vocab(model.get()), options);
}

}  // namespace

int main(int argc, char** argv) {
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
    run(options);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
