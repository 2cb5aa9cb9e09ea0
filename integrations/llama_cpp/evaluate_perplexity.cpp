// SPDX-License-Identifier: Apache-2.0
//
// Perplexity of the last tokens of a passage, and agreement in greedy decoding after one.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "integrations/llama_cpp/evaluation.hpp"

namespace clusterkv::llama_cpp {
namespace {

using nlohmann::json;

/// Log of the softmax.
std::vector<double> log_shares(const std::vector<float>& logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - max);
  const double log_sum = max + std::log(sum);
  std::vector<double> shares;
  shares.reserve(logits.size());
  for (const float x : logits) shares.push_back(x - log_sum);
  return shares;
}

std::size_t largest(const std::vector<float>& logits) {
  return static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Mean over positions of -log p(next), KL(engine || other), and how often both would say the same.
json compare(const std::vector<std::vector<float>>& engine,
             const std::vector<std::vector<float>>& other, std::span<const llama_token> next) {
  double nll = 0, kl = 0, same = 0, difference = 0;
  for (std::size_t i = 0; i < next.size(); ++i) {
    const auto p = log_shares(engine[i]);
    const auto q = log_shares(other[i]);
    nll -= q[static_cast<std::size_t>(next[i])];
    for (std::size_t w = 0; w < p.size(); ++w) {
      kl += std::exp(p[w]) * (p[w] - q[w]);
      difference = std::max(difference, std::abs(double{engine[i][w]} - double{other[i][w]}));
    }
    same += largest(engine[i]) == largest(other[i]) ? 1 : 0;
  }
  const auto count = static_cast<double>(next.size());
  return {{"nll", nll / count},
          {"kl", kl / count},
          {"same", same / count},
          {"largest_difference", difference}};
}

}  // namespace

std::vector<Evaluation::Logits> Evaluation::logits_of(const Attention& attention,
                                                      const Prompt& prompt,
                                                      std::span<const llama_token> tokens) const {
  Session session = resume(attention, prompt);
  std::vector<Logits> all;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    session.read(tokens.subspan(i, 1));
    const auto logits = session.logits();
    all.emplace_back(logits.begin(), logits.end());
  }
  return all;
}

json Evaluation::perplexity_of(std::size_t number) {
  const auto last = static_cast<std::size_t>(options_.last);
  const auto whole = static_cast<std::size_t>(options_.context) + 1;
  const auto tokens = passage(number, static_cast<std::size_t>(options_.passages), whole);
  const auto before = tokens.first(whole - 1 - last);
  const auto fed = tokens.subspan(before.size(), last);
  const Prompt prompt = remember(before, options_.context + 8, true);
  const Prompt not_flash =
      options_.other_path ? remember(before, options_.context + 8, false) : Prompt{};
  const auto engine = logits_of({}, prompt, fed);
  json results = json::array();
  for (const Attention& attention : attentions()) {
    const auto logits = logits_of(attention, attention.flash ? prompt : not_flash, fed);
    json result = compare(engine, logits, tokens.last(last));
    fmt::print(stderr, "passage {}, {}: perplexity {:.4f}, KL {:.5f}\n", number, attention.name(),
               std::exp(result["nll"].get<double>()), result["kl"].get<double>());
    result["attention"] = attention.name();
    result["passage"] = number;
    results.push_back(std::move(result));
  }
  return results;
}

json Evaluation::perplexity() {
  json results = json::array();
  for (int i = 0; i < options_.passages; ++i) {
    for (json& result : perplexity_of(static_cast<std::size_t>(i))) {
      results.push_back(std::move(result));
    }
  }
  return {{"context", options_.context}, {"last", options_.last}, {"results", results}};
}

/// The most likely token after `first`, and after each of what was `said`, but the last; where nothing was
/// said, after its own.
Tokens Evaluation::choices_of(const Attention& attention, const Prompt& prompt, llama_token first,
                              std::span<const llama_token> said) const {
  Session session = resume(attention, prompt);
  Tokens choices;
  llama_token token = first;
  for (int i = 0; i < options_.greedy_tokens; ++i) {
    session.read({&token, 1});
    choices.push_back(session.most_likely());
    token = said.empty() ? choices.back() : said[static_cast<std::size_t>(i)];
  }
  return choices;
}

/// Up to the first difference, what another attention would say by itself is what it says here.
json Evaluation::greedy_of(std::size_t number) {
  const auto context = static_cast<std::size_t>(options_.context);
  const auto tokens = passage(number, static_cast<std::size_t>(options_.passages), context + 1);
  const int room = options_.context + options_.greedy_tokens + 8;
  const Prompt prompt = remember(tokens.first(context), room, true);
  const Prompt not_flash =
      options_.other_path ? remember(tokens.first(context), room, false) : Prompt{};
  const Tokens said = choices_of({}, prompt, tokens.back(), {});
  json results = json::array();
  for (const Attention& attention : attentions()) {
    const Tokens choices =
        choices_of(attention, attention.flash ? prompt : not_flash, tokens.back(), said);
    std::size_t same = 0;
    for (std::size_t i = 0; i < said.size(); ++i) same += choices[i] == said[i] ? 1 : 0;
    const auto first = std::mismatch(said.begin(), said.end(), choices.begin()).first;
    results.push_back({{"attention", attention.name()},
                       {"passage", number},
                       {"same", same},
                       {"first_difference", first - said.begin()}});
    fmt::print(stderr, "{}\n", results.back().dump());
  }
  return results;
}

json Evaluation::greedy() {
  json results = json::array();
  for (int i = 0; i < options_.passages; ++i) {
    for (json& result : greedy_of(static_cast<std::size_t>(i))) {
      results.push_back(std::move(result));
    }
  }
  return {{"context", options_.context}, {"tokens", options_.greedy_tokens}, {"results", results}};
}

}  // namespace clusterkv::llama_cpp
