// SPDX-License-Identifier: Apache-2.0
#include "tools/clusterkv/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/clusterkv/progress.hpp"

namespace clusterkv::tool {
namespace {

std::string format_row(const Metrics& m) {
  return fmt::format(
      "{:<9}{:>5}{:>8}{:>9.4f}{:>9.4f}{:>8.4f}{:>8.4f}{:>6.2f}{:>6.2f}{:>6.2f}{:>10.1f}{:>11.0f}"
      "{:>10.1f}{:>10.1f}",
      m.preset, m.layer, m.budget, m.error_mean, m.error_p95, m.mass_recall, m.token_recall,
      m.hit_rate_r1, m.hit_rate_r2, m.hit_rate_r3, m.attended_tokens, m.bytes_touched, m.step_us,
      m.dense_us);
}

}  // namespace

std::string format_table(const std::vector<Metrics>& rows, bool bars) {
  std::string text =
      fmt::format("{:<9}{:>5}{:>8}{:>9}{:>9}{:>8}{:>8}{:>6}{:>6}{:>6}{:>10}{:>11}{:>10}{:>10}\n",
                  "preset", "layer", "budget", "error", "err p95", "mass", "recall", "R=1", "R=2",
                  "R=3", "attended", "bytes", "step us", "dense us");
  double largest = 0;
  for (const Metrics& m : rows) largest = std::max(largest, m.error_mean);
  for (const Metrics& m : rows) {
    text += format_row(m);
    if (bars && largest > 0) text += "  " + bar(m.error_mean / largest, 20);
    text += "\n";
  }
  return text;
}

std::string format_json(const std::vector<Metrics>& rows) {
  auto array = nlohmann::ordered_json::array();
  for (const Metrics& m : rows) {
    array.push_back({{"preset", m.preset},
                     {"layer", m.layer},
                     {"budget", m.budget},
                     {"error_mean", m.error_mean},
                     {"error_p95", m.error_p95},
                     {"mass_recall", m.mass_recall},
                     {"token_recall", m.token_recall},
                     {"hit_rate_r1", m.hit_rate_r1},
                     {"hit_rate_r2", m.hit_rate_r2},
                     {"hit_rate_r3", m.hit_rate_r3},
                     {"attended_tokens", m.attended_tokens},
                     {"bytes_touched", m.bytes_touched},
                     {"step_us", m.step_us},
                     {"dense_us", m.dense_us}});
  }
  return array.dump(2) + "\n";
}

}  // namespace clusterkv::tool
