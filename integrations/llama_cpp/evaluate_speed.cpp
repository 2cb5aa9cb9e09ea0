// SPDX-License-Identifier: Apache-2.0
//
// Time of attention in a decoded token, by the engine and by the plugin, and of what the plugin does besides.
#include <fmt/format.h>
#include <ggml.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "integrations/llama_cpp/evaluation.hpp"

namespace clusterkv::llama_cpp {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Times the attention nodes of a session. Each node is run by itself, whoever runs it.
class AttentionTimer {
 public:
  static bool on_node(ggml_tensor* node, bool ask, void* data) {
    auto& self = *static_cast<AttentionTimer*>(data);
    if (node->op != GGML_OP_FLASH_ATTN_EXT) return true;
    if (ask) {
      self.start_ = Clock::now();
    } else {
      self.seconds_ += seconds_since(self.start_);
    }
    return true;
  }
  double take() { return std::exchange(seconds_, 0.0); }

 private:
  Clock::time_point start_;
  double seconds_ = 0;
};

/// "name=value" of the plugin's summary.
double number_of(const std::string& summary, const std::string& name) {
  const auto at = summary.find(" " + name + "=");
  if (at == std::string::npos) throw std::runtime_error("no " + name + " in the plugin's summary");
  return std::stod(summary.substr(at + name.size() + 2));
}

/// The plugin learns the layers, sees the prompt and clusters it.
constexpr int kFirstSteps = 3;

/// Seconds of attention in each step, and what the plugin said at the end.
struct Run {
  std::vector<double> steps;
  std::string summary;
};

Run run(const Model& model, const Prompt& prompt, llama_token token, int steps) {
  Run run;
  take_plugin_log();
  {
    AttentionTimer timer;
    SessionOptions options = prompt.session;
    options.on_node = AttentionTimer::on_node;
    options.on_node_data = &timer;
    Session session(model, options);
    session.restore(prompt.state);
    for (int i = 0; i < steps; ++i) {
      session.read({&token, 1});
      run.steps.push_back(timer.take());
      token = session.most_likely();
    }
  }
  run.summary = take_plugin_log();
  return run;
}

/// Of the last steps, each.
double mean(const std::vector<double>& steps) {
  double sum = 0;
  for (auto step = steps.begin() + kFirstSteps; step != steps.end(); ++step) sum += *step;
  return sum / static_cast<double>(steps.size() - kFirstSteps);
}

/// What the plugin says of itself: of each step, but the first ones.
void add_parts(json& result, const Run& whole, const Run& first) {
  const auto steps = static_cast<double>(whole.steps.size() - first.steps.size());
  for (const char* part : {"match", "append", "attend"}) {
    result[part] = (number_of(whole.summary, part) - number_of(first.summary, part)) / steps;
  }
  result["clustering"] = first.steps.back() - result["seconds"].get<double>();
  for (const char* part : {"engine", "held", "resident", "workspace"}) {
    result["MiB"][part] = number_of(whole.summary, part);
  }
}

}  // namespace

json Evaluation::speed_of(int context) {
  const auto tokens = passage(0, 1, static_cast<std::size_t>(context) + 1);
  const auto start = Clock::now();
  Prompt prompt =
      remember(tokens.first(tokens.size() - 1), context + kFirstSteps + options_.steps + 8, true);
  const double prefill = seconds_since(start);
  std::vector<Attention> all;
  for (const Attention& attention : attentions()) {
    if (!attention.flash) continue;
    all.push_back(attention);
    if (attention.preset.empty()) continue;
    all.push_back(attention);
    all.back().in_place = true;
  }
  json results = json::array();
  for (int threads = 1; threads <= options_.threads; ++threads) {
    prompt.session.threads = threads;
    for (const Attention& attention : all) {
      attention.choose();
      const auto with = [&](int steps) {
        return run(model_, prompt, tokens.back(), kFirstSteps + steps);
      };
      const Run whole = with(options_.steps);
      json result = {{"context", context},
                     {"threads", threads},
                     {"attention", attention.name()},
                     {"prefill", prefill},
                     {"seconds", mean(whole.steps)}};
      if (!attention.preset.empty()) add_parts(result, whole, with(0));
      fmt::print(stderr, "{}\n", result.dump());
      results.push_back(std::move(result));
    }
  }
  return results;
}

json Evaluation::speed() {
  setenv("CLUSTERKV_STATS", "1", 1);
  json results = json::array();
  for (const int context : options_.contexts) {
    for (json& result : speed_of(context)) results.push_back(std::move(result));
  }
  return {{"steps", options_.steps}, {"results", results}};
}

}  // namespace clusterkv::llama_cpp
