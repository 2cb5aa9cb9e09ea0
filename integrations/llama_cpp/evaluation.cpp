// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/evaluation.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <stdexcept>

namespace clusterkv::llama_cpp {

std::string Attention::name() const {
  if (preset.empty()) return flash ? "engine" : "engine, not flash";
  return fmt::format("{} {}{}", preset, budget, in_place ? ", in place" : "");
}

void Attention::choose() const {
  setenv("CLUSTERKV_PRESET", preset.empty() ? "standard" : preset.c_str(), 1);
  setenv("CLUSTERKV_ROWS", in_place ? "engine" : "cache", 1);
  setenv("CLUSTERKV_BUDGET", std::to_string(budget).c_str(), 1);
}

Evaluation::Evaluation(const EvaluationOptions& options)
    : options_(options),
      model_(options.model, options.plugin),
      text_(model_.tokenize(read_file(options.text_file), true)) {}

std::vector<Attention> Evaluation::attentions() const {
  std::vector<Attention> all = {{}};
  for (const std::string& preset : options_.presets) {
    for (const int budget : options_.budgets) all.push_back({preset, budget});
  }
  if (options_.other_path) all.push_back({.flash = false});
  return all;
}

std::span<const llama_token> Evaluation::passage(std::size_t number, std::size_t of,
                                                 std::size_t tokens) const {
  if (tokens > text_.size()) throw std::runtime_error("the text is too short");
  const std::size_t step = of > 1 ? (text_.size() - tokens) / (of - 1) : 0;
  return std::span(text_).subspan(number * step, tokens);
}

Prompt Evaluation::remember(std::span<const llama_token> prompt, int context_tokens,
                            bool flash) const {
  const SessionOptions options{
      .context_tokens = context_tokens, .threads = options_.threads, .flash = flash};
  Attention{.flash = flash}.choose();
  Session engine(model_, options);
  engine.read(prompt);
  return {options, engine.state()};
}

Session Evaluation::resume(const Attention& attention, const Prompt& prompt) const {
  attention.choose();
  Session session(model_, prompt.session);
  session.restore(prompt.state);
  return session;
}

}  // namespace clusterkv::llama_cpp
