// SPDX-License-Identifier: Apache-2.0
//
// Small statistics over a replay.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

namespace clusterkv::tool {

double mean(const std::vector<double>& values);

/// Linear interpolation between the closest ranks, as NumPy does it. `share` in 0 .. 1.
double percentile(std::vector<double> values, double share);

/// Share of chosen clusters that one of the last R steps chose too.
class HitRate {
 public:
  explicit HitRate(int steps) : steps_(steps) {}

  struct Cluster {
    std::int32_t id;
    std::int32_t rows;
    auto operator<=>(const Cluster&) const = default;
  };

  /// The choice of one selection head in one step.
  void add(const std::vector<Cluster>& chosen);

  /// Mean over steps, the first one skipped; 0 before the second.
  [[nodiscard]] double rate() const { return mean(rates_); }
  /// Rows of clusters that were missed, a step.
  [[nodiscard]] double missed_rows() const { return mean(missed_rows_); }

 private:
  int steps_;
  std::vector<std::set<std::int32_t>> past_;  ///< newest last
  bool started_ = false;
  std::vector<double> rates_;
  std::vector<double> missed_rows_;
};

}  // namespace clusterkv::tool
