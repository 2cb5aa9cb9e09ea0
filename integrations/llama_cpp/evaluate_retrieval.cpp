// SPDX-License-Identifier: Apache-2.0
//
// A number hidden in a text, and asked for at its end.
#include <fmt/format.h>

#include <random>
#include <stdexcept>

#include "integrations/llama_cpp/evaluation.hpp"

namespace clusterkv::llama_cpp {
namespace {

using nlohmann::json;

constexpr fmt::format_string<const std::string&> kFact =
    "\nThe pass key is {0}. Remember it. {0} is the pass key.\n";
constexpr const char* kQuestion = "\nWhat is the pass key? The pass key is";

/// The plugin clusters a prompt in the third step after it, so some of the question is read a token at a
/// time before the answer begins.
constexpr std::size_t kReadSingly = 8;
constexpr int kAnswerTokens = 8;

/// Five digits, the same in every run.
std::string number_of(int length, int repeat, int depth) {
  std::seed_seq seed{length, repeat, depth};
  std::mt19937 random(seed);
  return std::to_string(10000 + random() % 90000);
}

}  // namespace

Hidden Evaluation::hide(const std::string& number, int length, int repeat, int repeats) const {
  Hidden hidden{.fact = model_.tokenize(fmt::format(kFact, number), false),
                .question = model_.tokenize(kQuestion, false)};
  const std::size_t story =
      static_cast<std::size_t>(length) - hidden.fact.size() - hidden.question.size();
  const auto tokens =
      passage(static_cast<std::size_t>(repeat), static_cast<std::size_t>(repeats), story);
  hidden.plain.assign(tokens.begin(), tokens.end());
  return hidden;
}

/// The first line that begins in the middle of a tenth of the story, or later.
std::size_t Evaluation::place(const Hidden& hidden, int depth) const {
  const auto tenths = static_cast<std::size_t>(options_.depths);
  std::size_t place =
      hidden.plain.size() * (2 * static_cast<std::size_t>(depth) + 1) / (2 * tenths);
  while (place < hidden.plain.size() && !model_.text_of(hidden.plain[place - 1]).ends_with('\n')) {
    ++place;
  }
  return place;
}

std::string Evaluation::answer(const Attention& attention, const Prompt& prompt,
                               std::span<const llama_token> rest) const {
  Session session = resume(attention, prompt);
  for (std::size_t i = 0; i < rest.size(); ++i) session.read(rest.subspan(i, 1));
  std::string text;
  for (int i = 0; i < kAnswerTokens; ++i) {
    const llama_token token = session.most_likely();
    if (llama_vocab_is_eog(model_.vocab(), token)) break;
    text += model_.text_of(token);
    session.read({&token, 1});
  }
  return text;
}

/// The story is computed once, and from the fact on again for each depth.
json Evaluation::ask(int length, int repeat, int repeats) {
  const int room = length + kAnswerTokens + 8;
  const Tokens plain = hide("00000", length, repeat, repeats).plain;
  std::vector<Prompt> shared = {remember(plain, room, true)};
  if (options_.other_path) shared.push_back(remember(plain, room, false));
  json results = json::array();
  for (int depth = 0; depth < options_.depths; ++depth) {
    const std::string number = number_of(length, repeat, depth);
    const Hidden hidden = hide(number, length, repeat, repeats);
    if (hidden.plain != plain) throw std::runtime_error("numbers differ in tokens");
    const std::size_t place = this->place(hidden, depth);
    Tokens rest = hidden.fact;
    rest.insert(rest.end(), plain.begin() + static_cast<std::ptrdiff_t>(place), plain.end());
    rest.insert(rest.end(), hidden.question.begin(), hidden.question.end());
    const auto most = std::span(rest).first(rest.size() - kReadSingly);
    json answers = json::object();
    for (const Prompt& story : shared) {
      Session engine = resume({.flash = story.session.flash}, story);
      engine.cut(place);
      engine.read(most);
      const Prompt prompt{story.session, engine.state()};
      for (const Attention& attention : attentions()) {
        if (attention.flash != story.session.flash) continue;
        answers[attention.name()] = answer(attention, prompt, std::span(rest).last(kReadSingly));
      }
    }
    results.push_back({{"length", length},
                       {"repeat", repeat},
                       {"depth", depth},
                       {"number", number},
                       {"answers", answers}});
    fmt::print(stderr, "{}\n", results.back().dump());
  }
  return results;
}

json Evaluation::retrieval() {
  if (options_.lengths.size() != options_.repeats.size()) {
    throw std::runtime_error("--repeats: as many as --lengths");
  }
  json results = json::array();
  for (std::size_t i = 0; i < options_.lengths.size(); ++i) {
    for (int repeat = 0; repeat < options_.repeats[i]; ++repeat) {
      for (json& result : ask(options_.lengths[i], repeat, options_.repeats[i])) {
        results.push_back(std::move(result));
      }
    }
  }
  return {{"depths", options_.depths}, {"results", results}};
}

}  // namespace clusterkv::llama_cpp
