// SPDX-License-Identifier: Apache-2.0
#include "tools/clusterkv/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace clusterkv::tool {

double mean(const std::vector<double>& values) {
  if (values.empty()) return 0.0;
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(std::floor(at));
  const std::size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

void HitRate::add(const std::vector<Cluster>& chosen) {
  std::set<std::int32_t> ids;
  double hits = 0;
  double missed = 0;
  for (const Cluster& cluster : chosen) {
    ids.insert(cluster.id);
    const bool hit = std::any_of(past_.begin(), past_.end(),
                                 [&](const auto& step) { return step.contains(cluster.id); });
    hits += hit ? 1.0 : 0.0;
    missed += hit ? 0.0 : cluster.rows;
  }
  if (started_ && !chosen.empty()) {
    rates_.push_back(hits / static_cast<double>(chosen.size()));
    missed_rows_.push_back(missed);
  }
  started_ = true;
  past_.push_back(std::move(ids));
  if (static_cast<int>(past_.size()) > steps_) past_.erase(past_.begin());
}

}  // namespace clusterkv::tool
