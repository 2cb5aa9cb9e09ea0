// SPDX-License-Identifier: Apache-2.0
//
// What the programs here do with the engine: a model, contexts of it, tokens in, logits out.
#pragma once

#include <llama.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace clusterkv::llama_cpp {

using Tokens = std::vector<llama_token>;

class Model {
 public:
  /// \param plugin  of ggml's, loaded first; empty: none
  /// \throws std::runtime_error  if one of them cannot be loaded
  Model(const std::string& path, const std::string& plugin);

  [[nodiscard]] llama_model* get() const { return model_.get(); }
  [[nodiscard]] const llama_vocab* vocab() const { return llama_model_get_vocab(get()); }
  [[nodiscard]] int num_words() const { return llama_vocab_n_tokens(vocab()); }

  [[nodiscard]] Tokens tokenize(const std::string& text, bool begins) const;
  [[nodiscard]] std::string text_of(llama_token token) const;

 private:
  std::unique_ptr<llama_model, decltype(&llama_model_free)> model_{nullptr, llama_model_free};
};

struct SessionOptions {
  int context_tokens = 0;
  int threads = 2;
  int batch = 512;
  bool flash = true;                                   ///< the plugin takes over nothing without
  ggml_backend_sched_eval_callback on_node = nullptr;  ///< asked before and told after each node
  void* on_node_data = nullptr;
};

/// One sequence.
class Session {
 public:
  Session(const Model& model, const SessionOptions& options);

  [[nodiscard]] llama_context* get() const { return context_.get(); }

  /// In batches; logits are those of the last token.
  void read(std::span<const llama_token> tokens);
  /// Forgets all tokens from a position on.
  void cut(std::size_t length);
  [[nodiscard]] std::span<const float> logits() const;
  [[nodiscard]] llama_token most_likely() const;

  /// All that the engine remembers, for another session of the same options.
  [[nodiscard]] std::vector<std::uint8_t> state() const;
  void restore(const std::vector<std::uint8_t>& state);

 private:
  int num_words_;
  int batch_;
  std::unique_ptr<llama_context, decltype(&llama_free)> context_{nullptr, llama_free};
};

/// What the plugin said since the last call; it was shown as well.
std::string take_plugin_log();

/// \throws std::runtime_error
std::string read_file(const std::string& path);

}  // namespace clusterkv::llama_cpp
