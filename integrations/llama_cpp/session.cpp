// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/session.hpp"

#include <fmt/format.h>
#include <ggml-backend.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace clusterkv::llama_cpp {
namespace {

std::string plugin_log;

/// The plugin's messages and the engine's complaints; all else is not of interest here.
void show(ggml_log_level level, const char* text, void*) {
  const bool is_ours = std::string_view(text).starts_with("clusterkv:");
  if (is_ours) plugin_log += text;
  if (is_ours || level == GGML_LOG_LEVEL_ERROR) fmt::print(stderr, "{}", text);
}

}  // namespace

Model::Model(const std::string& path, const std::string& plugin) {
  llama_log_set(show, nullptr);
  llama_backend_init();
  if (!plugin.empty() && ggml_backend_load(plugin.c_str()) == nullptr) {
    throw std::runtime_error("the plugin was not loaded");
  }
  model_.reset(llama_model_load_from_file(path.c_str(), llama_model_default_params()));
  if (!model_) throw std::runtime_error("cannot load " + path);
}

Tokens Model::tokenize(const std::string& text, bool begins) const {
  Tokens tokens(text.size() + 8);
  const auto count =
      llama_tokenize(vocab(), text.data(), static_cast<std::int32_t>(text.size()), tokens.data(),
                     static_cast<std::int32_t>(tokens.size()), begins, true);
  if (count < 0) throw std::runtime_error("the text cannot be tokenized");
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

std::string Model::text_of(llama_token token) const {
  std::string text(64, '\0');
  const auto size = llama_token_to_piece(vocab(), token, text.data(),
                                         static_cast<std::int32_t>(text.size()), 0, true);
  text.resize(static_cast<std::size_t>(std::max(0, size)));
  return text;
}

Session::Session(const Model& model, const SessionOptions& options)
    : num_words_(model.num_words()), batch_(options.batch) {
  auto params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(options.context_tokens);
  params.n_batch = params.n_ubatch = static_cast<std::uint32_t>(options.batch);
  params.n_threads = params.n_threads_batch = options.threads;
  // With AUTO the engine would not use a plugin.
  params.flash_attn_type =
      options.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.cb_eval = options.on_node;
  params.cb_eval_user_data = options.on_node_data;
  context_.reset(llama_init_from_model(model.get(), params));
  if (!context_) throw std::runtime_error("no context could be made");
}

void Session::read(std::span<const llama_token> tokens) {
  while (!tokens.empty()) {
    const auto count = std::min(tokens.size(), static_cast<std::size_t>(batch_));
    Tokens batch(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count));
    if (llama_decode(get(), llama_batch_get_one(batch.data(), static_cast<int>(count))) != 0) {
      throw std::runtime_error("the engine could not decode");
    }
    tokens = tokens.subspan(count);
  }
}

void Session::cut(std::size_t length) {
  if (!llama_memory_seq_rm(llama_get_memory(get()), 0, static_cast<llama_pos>(length), -1)) {
    throw std::runtime_error("the engine could not forget tokens");
  }
}

std::span<const float> Session::logits() const {
  return {llama_get_logits_ith(get(), -1), static_cast<std::size_t>(num_words_)};
}

llama_token Session::most_likely() const {
  const auto all = logits();
  return static_cast<llama_token>(std::max_element(all.begin(), all.end()) - all.begin());
}

std::vector<std::uint8_t> Session::state() const {
  std::vector<std::uint8_t> bytes(llama_state_get_size(get()));
  bytes.resize(llama_state_get_data(get(), bytes.data(), bytes.size()));
  return bytes;
}

void Session::restore(const std::vector<std::uint8_t>& state) {
  if (llama_state_set_data(get(), state.data(), state.size()) == 0) {
    throw std::runtime_error("the engine could not restore a state");
  }
}

std::string take_plugin_log() {
  return std::exchange(plugin_log, {});
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace clusterkv::llama_cpp
