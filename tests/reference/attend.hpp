// SPDX-License-Identifier: Apache-2.0
//
// Stage 5 in fp64: one softmax over rows and cluster means.
#pragma once

#include <vector>

#include "tests/reference/numeric.hpp"

namespace clusterkv::reference {

/// Something that takes part in a softmax: weight * exp(logit), and a value.
struct Term {
  double logit;  ///< natural log
  double weight;
  Vec value;
};

struct State {
  Vec out;     ///< 0 without terms
  double lse;  ///< natural log; -inf without terms
};

State softmax(const std::vector<Term>& terms, int value_dim);

/// c tanh(logit / c); the logit itself if c is 0.
double soft_capped(double logit, double c);

/// Exact attention of one query over rows.
State attend(const Vec& query, const std::vector<Vec>& keys, const std::vector<Vec>& values,
             double scale);

/// The union of disjoint sets of terms.
State merge(const std::vector<State>& parts);

}  // namespace clusterkv::reference
