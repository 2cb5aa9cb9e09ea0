// SPDX-License-Identifier: Apache-2.0
//
// What budgets do to a model's answers and to its time, each beside the engine's own attention over the same
// prompt, which is computed once. Results are JSON.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "integrations/llama_cpp/session.hpp"

namespace clusterkv::llama_cpp {

struct EvaluationOptions {
  std::string model, plugin, text_file, out;
  int threads = 2;
  std::vector<int> budgets;
  std::vector<std::string> presets = {"standard"};
  bool other_path = true;  ///< also the engine without flash attention, which wants its own prefill
  int context = 7680;      ///< tokens of a passage
  int passages = 2;        ///< of one length
  int last = 512;          ///< perplexity: tokens that are predicted
  int greedy_tokens = 256;  ///< greedy: tokens that the engine says
  // retrieval
  std::vector<int> lengths = {2000, 2500, 3000, 3500, 4000, 5000, 7000};
  std::vector<int> repeats = {4, 1, 1, 1, 1, 1, 1};
  int depths = 10;
  // speed
  std::vector<int> contexts = {2048, 4096, 8192};
  int steps = 320;  ///< as many as are clustered together
};

/// Who answers: the engine, or the plugin with a budget. Read by the plugin when a context is made.
struct Attention {
  std::string preset;  ///< empty: the engine
  int budget = 0;
  bool flash = true;      ///< false: the engine's other path
  bool in_place = false;  ///< of the plugin: over the engine's rows

  [[nodiscard]] std::string name() const;
  void choose() const;
};

/// What the engine remembers of a prompt, for sessions of the same options.
struct Prompt {
  SessionOptions session;
  std::vector<std::uint8_t> state;
};

/// A story with a fact at one of the depths, and a question.
struct Hidden {
  Tokens plain;  ///< without the fact; up to it, what all depths share
  Tokens fact, question;
};

class Evaluation {
 public:
  explicit Evaluation(const EvaluationOptions& options);

  nlohmann::json perplexity();
  nlohmann::json greedy();
  nlohmann::json retrieval();
  nlohmann::json speed();

 private:
  using Logits = std::vector<float>;

  /// The engine first, its other path last where it is wanted.
  [[nodiscard]] std::vector<Attention> attentions() const;
  /// Passages begin at equal distances, so that as much of the text as possible is used.
  [[nodiscard]] std::span<const llama_token> passage(std::size_t number, std::size_t of,
                                                     std::size_t tokens) const;
  /// Computed by the engine, by either of its paths: their states differ, values lie transposed in one.
  [[nodiscard]] Prompt remember(std::span<const llama_token> prompt, int context_tokens,
                                bool flash) const;
  [[nodiscard]] Session resume(const Attention& attention, const Prompt& prompt) const;

  std::vector<Logits> logits_of(const Attention& attention, const Prompt& prompt,
                                std::span<const llama_token> tokens) const;
  nlohmann::json perplexity_of(std::size_t number);
  Tokens choices_of(const Attention& attention, const Prompt& prompt, llama_token first,
                    std::span<const llama_token> said) const;
  nlohmann::json greedy_of(std::size_t number);
  [[nodiscard]] Hidden hide(const std::string& number, int length, int repeat, int repeats) const;
  [[nodiscard]] std::size_t place(const Hidden& hidden, int depth) const;
  nlohmann::json ask(int length, int repeat, int repeats);
  [[nodiscard]] std::string answer(const Attention& attention, const Prompt& prompt,
                                   std::span<const llama_token> rest) const;
  nlohmann::json speed_of(int context);

  EvaluationOptions options_;
  Model model_;
  Tokens text_;
};

}  // namespace clusterkv::llama_cpp
