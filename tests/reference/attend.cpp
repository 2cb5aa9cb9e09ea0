// SPDX-License-Identifier: Apache-2.0
#include "tests/reference/attend.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace clusterkv::reference {

State softmax(const std::vector<Term>& terms, int value_dim) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double max = -kInfinity;
  for (const Term& term : terms) {
    if (term.weight > 0) max = std::max(max, term.logit);
  }
  State state{Vec(static_cast<std::size_t>(value_dim)), -kInfinity};
  if (max == -kInfinity) return state;
  double sum = 0;
  for (const Term& term : terms) {
    const double mass = term.weight * std::exp(term.logit - max);
    sum += mass;
    for (std::size_t d = 0; d < state.out.size(); ++d) state.out[d] += mass * term.value[d];
  }
  for (double& x : state.out) x /= sum;
  state.lse = max + std::log(sum);
  return state;
}

double soft_capped(double logit, double c) {
  return c == 0 ? logit : c * std::tanh(logit / c);
}

State attend(const Vec& query, const std::vector<Vec>& keys, const std::vector<Vec>& values,
             double scale) {
  std::vector<Term> terms;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    terms.push_back({scale * dot(query, keys[i]), 1.0, values[i]});
  }
  return softmax(terms, static_cast<int>(query.size()));
}

State merge(const std::vector<State>& parts) {
  std::vector<Term> terms;
  for (const State& part : parts) {
    if (std::isfinite(part.lse)) terms.push_back({part.lse, 1.0, part.out});
  }
  return softmax(terms, static_cast<int>(parts.front().out.size()));
}

}  // namespace clusterkv::reference
