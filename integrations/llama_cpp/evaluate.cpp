// SPDX-License-Identifier: Apache-2.0
//
// What budgets do to a model's answers: perplexity and retrieval, each beside the engine's own attention
// over the same prompt, which is computed once. Results are JSON; scripts/evaluate_llama makes tables.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>

#include "integrations/llama_cpp/session.hpp"

namespace clusterkv::llama_cpp {
namespace {

using nlohmann::json;

struct Options {
  std::string model, plugin, text_file, out;
  int threads = 2;
  std::vector<int> budgets;
  std::vector<std::string> presets = {"standard"};
  // perplexity
  int context = 7680, last = 512, passages = 2;
  // retrieval
  std::vector<int> lengths = {2000, 3500, 5000, 7000};
  std::vector<int> repeats = {4, 3, 2, 1};
  int depths = 10;
};

/// Who answers: the engine, or the plugin with a budget. Read by the plugin when a context is made.
struct Attention {
  std::string preset;  ///< empty: the engine
  int budget = 0;

  [[nodiscard]] std::string name() const {
    return preset.empty() ? "engine" : fmt::format("{} {}", preset, budget);
  }
  void choose() const {
    setenv("CLUSTERKV_PRESET", preset.empty() ? "standard" : preset.c_str(), 1);
    setenv("CLUSTERKV_BUDGET", std::to_string(budget).c_str(), 1);
  }
};

/// The engine first.
std::vector<Attention> attentions(const Options& options) {
  std::vector<Attention> all = {{}};
  for (const std::string& preset : options.presets) {
    for (const int budget : options.budgets) all.push_back({preset, budget});
  }
  return all;
}

/// A story with a fact at one of the depths, and a question in the model's own form of a talk.
struct Hidden {
  Tokens plain;  ///< without the fact; up to it, what all depths share
  Tokens fact, question;

  [[nodiscard]] std::size_t place(int depth, int depths) const {
    const std::size_t begin = plain.size() - story;
    if (depths == 1) return begin + story / 2;
    return begin + story * static_cast<std::size_t>(depth) / static_cast<std::size_t>(depths - 1);
  }
  std::size_t story = 0;  ///< tokens, the last ones of `plain`
};

class Evaluation {
 public:
  explicit Evaluation(const Options& options)
      : options_(options),
        model_(options.model, options.plugin),
        text_(model_.tokenize(read_file(options.text_file), true)) {}

  json perplexity();
  json retrieval();

 private:
  using Logits = std::vector<float>;

  [[nodiscard]] SessionOptions session(int tokens) const {
    return {.context_tokens = tokens, .threads = options_.threads};
  }
  /// What the engine remembers of a prompt.
  std::vector<std::uint8_t> remember(std::span<const llama_token> prompt, SessionOptions of) const {
    Attention{}.choose();
    Session engine(model_, of);
    engine.read(prompt);
    return engine.state();
  }
  [[nodiscard]] std::span<const llama_token> passage(std::size_t number, std::size_t of,
                                                     std::size_t tokens) const;
  std::vector<Logits> logits_of(const Attention& attention, SessionOptions of,
                                const std::vector<std::uint8_t>& state,
                                std::span<const llama_token> tokens) const;
  json perplexity_of(std::size_t number);
  [[nodiscard]] Hidden hide(const std::string& number, int length, int repeat, int repeats) const;
  json ask(int length, int repeat, int repeats, std::mt19937& random);
  std::string answer(const Attention& attention, SessionOptions of,
                     const std::vector<std::uint8_t>& state,
                     std::span<const llama_token> rest) const;

  Options options_;
  Model model_;
  Tokens text_;
};

/// Passages begin at equal distances, so that as much of the text as possible is used.
std::span<const llama_token> Evaluation::passage(std::size_t number, std::size_t of,
                                                 std::size_t tokens) const {
  if (tokens > text_.size()) throw std::runtime_error("the text is too short");
  const std::size_t step = of > 1 ? (text_.size() - tokens) / (of - 1) : 0;
  return std::span(text_).subspan(number * step, tokens);
}

// ---------------------------------------------------------------------------------- perplexity

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

std::vector<Evaluation::Logits> Evaluation::logits_of(const Attention& attention, SessionOptions of,
                                                      const std::vector<std::uint8_t>& state,
                                                      std::span<const llama_token> tokens) const {
  attention.choose();
  Session session(model_, of);
  session.restore(state);
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
  const auto prompt = tokens.first(whole - 1 - last);
  const auto fed = tokens.subspan(prompt.size(), last);
  const auto next = tokens.last(last);
  const SessionOptions of = session(options_.context + 8);
  const auto state = remember(prompt, of);
  const auto engine = logits_of({}, of, state, fed);
  json results = json::array();
  const auto add = [&](const std::string& name, const std::vector<Logits>& logits) {
    json result = compare(engine, logits, next);
    fmt::print(stderr, "passage {}, {}: perplexity {:.4f}, KL {:.5f}\n", number, name,
               std::exp(result["nll"].get<double>()), result["kl"].get<double>());
    result["attention"] = name;
    result["passage"] = number;
    results.push_back(result);
  };
  for (const Attention& attention : attentions(options_)) {
    add(attention.name(), attention.preset.empty() ? engine : logits_of(attention, of, state, fed));
  }
  SessionOptions plain = of;
  plain.flash = false;  // of another state: values lie transposed
  add("engine, not flash", logits_of({}, plain, remember(prompt, plain), fed));
  return results;
}

json Evaluation::perplexity() {
  json results = json::array();
  for (int i = 0; i < options_.passages; ++i) {
    for (const json& result : perplexity_of(static_cast<std::size_t>(i))) results.push_back(result);
  }
  return {{"context", options_.context}, {"last", options_.last}, {"results", results}};
}

// ----------------------------------------------------------------------------------- retrieval

Hidden Evaluation::hide(const std::string& number, int length, int repeat, int repeats) const {
  Hidden hidden;
  hidden.plain = model_.tokenize("<|im_start|>user\n", false);
  hidden.fact = model_.tokenize(
      fmt::format("\nThe pass key is {0}. Remember it. {0} is the pass key.\n", number), false);
  hidden.question = model_.tokenize(
      "\nWhat is the pass key?<|im_end|>\n<|im_start|>assistant\nThe pass key is", false);
  hidden.story = static_cast<std::size_t>(length) - hidden.plain.size() - hidden.fact.size() -
                 hidden.question.size();
  const auto story =
      passage(static_cast<std::size_t>(repeat), static_cast<std::size_t>(repeats), hidden.story);
  hidden.plain.insert(hidden.plain.end(), story.begin(), story.end());
  return hidden;
}

/// The plugin clusters a prompt in the third step after it, so some of the question is read a token at a
/// time before the answer begins.
constexpr std::size_t kReadSingly = 8;
constexpr int kAnswerTokens = 12;

std::string Evaluation::answer(const Attention& attention, SessionOptions of,
                               const std::vector<std::uint8_t>& state,
                               std::span<const llama_token> rest) const {
  attention.choose();
  Session session(model_, of);
  session.restore(state);
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
json Evaluation::ask(int length, int repeat, int repeats, std::mt19937& random) {
  const SessionOptions of = session(length + kAnswerTokens + 8);
  const Tokens plain = hide("00000", length, repeat, repeats).plain;
  const auto shared = remember(plain, of);
  json results = json::array();
  for (int depth = 0; depth < options_.depths; ++depth) {
    const auto number = std::to_string(10000 + random() % 90000);
    const Hidden hidden = hide(number, length, repeat, repeats);
    if (hidden.plain != plain) throw std::runtime_error("numbers differ in tokens");
    const std::size_t place = hidden.place(depth, options_.depths);
    Tokens rest = hidden.fact;
    rest.insert(rest.end(), hidden.plain.begin() + static_cast<std::ptrdiff_t>(place),
                hidden.plain.end());
    rest.insert(rest.end(), hidden.question.begin(), hidden.question.end());
    Attention{}.choose();
    Session engine(model_, of);
    engine.restore(shared);
    engine.cut(place);
    engine.read(std::span(rest).first(rest.size() - kReadSingly));
    const auto state = engine.state();
    json answers = json::object();
    for (const Attention& attention : attentions(options_)) {
      answers[attention.name()] = answer(attention, of, state, std::span(rest).last(kReadSingly));
    }
    fmt::print(stderr, "{} tokens, depth {}, {}: {}\n", length, depth, number, answers.dump());
    results.push_back(
        {{"length", length}, {"depth", depth}, {"number", number}, {"answers", answers}});
  }
  return results;
}

json Evaluation::retrieval() {
  if (options_.lengths.size() != options_.repeats.size()) {
    throw std::runtime_error("--repeats: as many as --lengths");
  }
  std::mt19937 random(1);
  json results = json::array();
  for (std::size_t i = 0; i < options_.lengths.size(); ++i) {
    for (int repeat = 0; repeat < options_.repeats[i]; ++repeat) {
      for (json& result : ask(options_.lengths[i], repeat, options_.repeats[i], random)) {
        results.push_back(std::move(result));
      }
    }
  }
  return {{"depths", options_.depths}, {"results", results}};
}

void add_options(CLI::App& app, Options& options) {
  app.add_option("--model", options.model, "GGUF file")->required();
  app.add_option("--plugin", options.plugin, "libggml-clusterkv.so")->required();
  app.add_option("--text", options.text_file, "text that passages are taken from")->required();
  app.add_option("--out", options.out, "JSON file for the results")->required();
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 1024));
  app.add_option("--budgets", options.budgets)->delimiter(',')->check(CLI::Range(1, 1 << 20));
  app.add_option("--presets", options.presets)->delimiter(',');
  app.require_subcommand(1);
  CLI::App* perplexity = app.add_subcommand("perplexity", "of the last tokens of passages");
  perplexity->add_option("--context", options.context, "tokens of a passage");
  perplexity->add_option("--last", options.last, "tokens that are predicted");
  perplexity->add_option("--passages", options.passages);
  CLI::App* retrieval = app.add_subcommand("retrieval", "of a number that was hidden in a text");
  retrieval->add_option("--lengths", options.lengths, "tokens of a prompt")->delimiter(',');
  retrieval->add_option("--depths", options.depths, "places in the text");
  retrieval->add_option("--repeats", options.repeats, "passages of each length")->delimiter(',');
}

}  // namespace
}  // namespace clusterkv::llama_cpp

int main(int argc, char** argv) {
  using namespace clusterkv::llama_cpp;
  CLI::App app("What budgets do to the answers of a model in llama.cpp");
  Options options;
  add_options(app, options);
  CLI11_PARSE(app, argc, argv);
  try {
    Evaluation evaluation(options);
    const nlohmann::json results =
        app.got_subcommand("perplexity") ? evaluation.perplexity() : evaluation.retrieval();
    std::ofstream file(options.out);
    file << results.dump(1) << '\n';
    if (!file.flush()) throw std::runtime_error("cannot write " + options.out);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
