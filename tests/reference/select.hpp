// SPDX-License-Identifier: Apache-2.0
//
// Stage 3 in fp64: scores, votes and the prefix rule, by sorting.
#pragma once

#include <vector>

#include "tests/reference/numeric.hpp"

namespace clusterkv::reference {

inline constexpr double kLog2E = 1.4426950408889634074;

/// w = spread * 1/2 s^2 sum_d q_d^2 profile_d.
double spread_weight(const Vec& query, double spread, const Vec& profile, double scale);

/// t of a logit z in units of log2: f(z) + log2(1 + w max(0, f'^2 + f'')), f the soft cap c, or none.
double mass_score(double z, double w, double softcap);

/// A score in units of log2: z = s log2(e) q.mu, and t.
struct Score {
  double z, t;
};
Score score(const Vec& query, const Vec& centroid, double spread, const Vec& profile, double scale,
            double softcap = 0);

/// The query as int16 planes hold it: multiples of max|q| / 32512, half to even.
Vec quantised_query(const Vec& query);

/// The prefix rule. keys[c], sizes[c] -> rows taken of each cluster: highest key first, ties by
/// lowest id, until `budget` rows; the last one trimmed. NaN keys come last.
std::vector<int> choose(const Vec& keys, const std::vector<int>& sizes, int budget);

/// Softmax of each head over clusters that have rows, summed over heads. t: [head][cluster], log2.
Vec votes(const std::vector<Vec>& t, const std::vector<int>& sizes);

}  // namespace clusterkv::reference
