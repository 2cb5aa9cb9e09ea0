// SPDX-License-Identifier: Apache-2.0
#include "tests/reference/naive_cache.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <string>

#include "kernels/cluster/rules.hpp"
#include "tests/reference/attend.hpp"
#include "tests/reference/cluster.hpp"
#include "tests/reference/index.hpp"
#include "tests/reference/select.hpp"

namespace clusterkv::testing {
namespace {

/// Scores of the library differ by this from those of the reference: fp32 sums over head_dim.
constexpr double kRankTolerance = 1e-4;
/// In steps of a format: how near the middle of two steps fp32 may round the other way.
constexpr double kMiddle = 2e-4;

std::size_t at(int i) {
  return static_cast<std::size_t>(i);
}

int count_of(const NaiveCluster& cluster) {
  return static_cast<int>(cluster.tokens.size());
}

double log_sum_exp(const Vec& x) {
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const double v : x) sum += std::exp(v - max);
  return max + std::log(sum);
}

double norm(const Vec& x) {
  return std::sqrt(reference::dot(x, x));
}

double distance(const Vec& a, const Vec& b) {
  Vec difference = a;
  for (std::size_t d = 0; d < a.size(); ++d) difference[d] -= b[d];
  return norm(difference);
}

void require(bool condition, const std::string& what) {
  if (!condition) throw Mismatch(what);
}

}  // namespace

NaiveCache::NaiveCache(const CacheConfig& config, bool rounds)
    : config_(config),
      operands_(rounds ? config.model.kv_dtype : DType::kF32),
      scale_(config.model.softmax_scale > 0 ? config.model.softmax_scale
                                            : 1 / std::sqrt(config.model.head_dim)),
      value_dim_(at(config.model.value_dim == 0 ? config.model.head_dim : config.model.value_dim)) {
}

int NaiveCache::model_layer(int layer) const {
  return config_.model.layers.empty() ? layer : config_.model.layers[at(layer)];
}

bool NaiveCache::is_dense_layer(int layer) const {
  return model_layer(layer) < config_.select.dense_layers;
}

int NaiveCache::sinks(const Sequence& s) const {
  return std::min(s.length, config_.cluster.sink_tokens);
}

const NaiveCache::Row& NaiveCache::row(SequenceId id, int layer, int token, int kv_head) const {
  return sequences_.at(id).rows[at(layer)][at(token)][at(kv_head)];
}

int NaiveCache::clustered(SequenceId id, int layer) const {
  const Sequence& s = sequences_.at(id);
  return is_dense_layer(layer) ? 0 : std::max(0, s.visible_end - sinks(s));
}

bool NaiveCache::attends_to_all(SequenceId id, int layer, int budget) const {
  const double limit = double{config_.select.dense_threshold} * budget;
  return clustered(id, layer) == 0 || sequences_.at(id).length <= limit;
}

bool NaiveCache::is_doubtful(SequenceId id, int layer, int kv_head) const {
  const Sequence& s = sequences_.at(id);
  if (s.segments.empty()) return false;
  const auto& segments = s.segments[at(layer)][at(kv_head)];
  return std::any_of(segments.begin(), segments.end(),
                     [](const NaiveSegment& segment) { return segment.smallest_gap < 1e-5; });
}

// ---------------------------------------------------------------------------------- one step

void NaiveCache::step(const StepRow& row, const std::vector<std::vector<std::vector<Row>>>& rows) {
  Sequence& s = sequences_[row.id];
  make_visible(s);
  s.rows.resize(rows.size());
  for (std::size_t layer = 0; layer < rows.size(); ++layer) {
    for (std::vector<Row> heads : rows[layer]) {
      for (Row& r : heads) {
        for (double& x : r.key) x = reference::rounded(config_.model.kv_dtype, x);
        for (double& x : r.value) x = reference::rounded(config_.model.kv_dtype, x);
      }
      s.rows[layer].push_back(std::move(heads));
    }
  }
  decide_sealing(s, row);
}

void NaiveCache::decide_sealing(Sequence& s, const StepRow& row) {
  const ClusterConfig& c = config_.cluster;
  const bool decode = row.phase == Phase::kDecode;
  const int before = s.length;
  s.step_start = before;
  s.length += row.num_new_tokens;
  const int end = decode ? before : s.length;  // decoded tokens wait for a later step
  int first = std::max(s.visible_end, sinks(s));
  const auto seal = [&](int count) {
    const int least = decode ? c.min_window_clusters : 1;
    s.sealing.push_back({first, first + count,
                         cluster::num_clusters(count, c.tokens_per_cluster, least),
                         num_segments_++});
    first += count;
  };
  const int run = decode ? c.window_tokens : c.segment_tokens;
  while (run > 0 && end - first >= run) seal(run);
  if (row.phase == Phase::kPrefillLast && end - first >= c.window_tokens) seal(end - first);
}

void NaiveCache::make_visible(Sequence& s) const {
  s.segments.resize(at(config_.model.num_layers),
                    std::vector<std::vector<NaiveSegment>>(at(config_.model.num_kv_heads)));
  for (const Sealing& sealing : s.sealing) {
    for (int layer = 0; layer < config_.model.num_layers; ++layer) {
      if (is_dense_layer(layer)) continue;
      for (int head = 0; head < config_.model.num_kv_heads; ++head) {
        s.segments[at(layer)][at(head)].push_back(cluster(s, layer, head, sealing));
      }
    }
    s.visible_end = sealing.last;
    s.visible.push_back(sealing);
  }
  s.sealing.clear();
}

// ---------------------------------------------------------------------------- fork, truncate

void NaiveCache::fork(SequenceId parent, SequenceId child, int num_tokens) {
  if (!sequences_.contains(parent)) return;  // no step yet
  sequences_[child] = sequences_.at(parent);
  truncate(child, num_tokens);
}

void NaiveCache::truncate(SequenceId id, int num_tokens) {
  if (!sequences_.contains(id)) return;
  Sequence& s = sequences_.at(id);
  const auto is_cut = [&](const Sealing& segment) { return segment.last > num_tokens; };
  std::erase_if(s.sealing, is_cut);
  if (num_tokens <= s.step_start) s.sealing.clear();  // the step has not been
  make_visible(s);
  std::erase_if(s.visible, is_cut);
  s.visible_end = s.visible.empty() ? 0 : s.visible.back().last;
  for (int layer = 0; layer < config_.model.num_layers; ++layer) {
    s.rows[at(layer)].resize(at(num_tokens));
    if (is_dense_layer(layer)) continue;
    for (auto& segments : s.segments[at(layer)]) segments.resize(s.visible.size());
  }
  s.length = num_tokens;
}

void NaiveCache::restore(SequenceId saved, SequenceId loaded) {
  if (!sequences_.contains(saved)) return;
  fork(saved, loaded, length(saved));
  for (Sealing& segment : sequences_.at(loaded).visible) segment.number = num_segments_++;
}

void NaiveCache::cancel(SequenceId id) {
  if (!sequences_.contains(id)) return;  // that was its first step
  Sequence& s = sequences_.at(id);
  make_visible(s);
  s.step_start = s.length;
}

std::int64_t NaiveCache::held_tokens() const {
  std::int64_t tokens = 0;
  std::set<int> counted;
  for (const auto& [id, s] : sequences_) {
    tokens += s.length;
    for (const auto* segments : {&s.visible, &s.sealing}) {
      for (const Sealing& segment : *segments) {
        if (!counted.insert(segment.number).second) tokens -= segment.last - segment.first;
      }
    }
  }
  return tokens;
}

// ---------------------------------------------------------------------------- cluster, index

NaiveSegment NaiveCache::cluster(const Sequence& s, int layer, int kv_head,
                                 const Sealing& sealing) const {
  const ClusterConfig& c = config_.cluster;
  const int count = sealing.last - sealing.first;
  std::vector<Vec> keys, values;
  for (int t = sealing.first; t < sealing.last; ++t) {
    const Row& r = s.rows[at(layer)][at(t)][at(kv_head)];
    keys.push_back(r.key);
    values.push_back(r.value);
  }
  std::vector<std::int32_t> starts(at(count));
  if (c.seed != 0) {
    cluster::random_starts(cluster::start_seed(c.seed, model_layer(layer), kv_head, sealing.first),
                           count, sealing.num_clusters, starts.data());
  } else {
    for (int i = 0; i < sealing.num_clusters; ++i) {
      starts[at(i)] = cluster::even_start(i, count, sealing.num_clusters);
    }
  }
  starts.resize(at(sealing.num_clusters));
  const reference::Assignment assignment = reference::kmeans(
      keys, {starts.begin(), starts.end()}, c.metric, c.kmeans_iterations, operands_);
  const reference::IndexedSegment indexed =
      reference::index_segment(keys, values, assignment.labels);
  NaiveSegment segment{{}, indexed.profile, indexed.value_sum, assignment.smallest_gap};
  for (const reference::IndexedCluster& from : indexed.clusters) {
    NaiveCluster made{from.tokens, stored(from.mean_key), stored(from.mean_value), from.spread};
    for (int& token : made.tokens) token += sealing.first;
    segment.clusters.push_back(std::move(made));
  }
  return segment;
}

StoredMean NaiveCache::stored(const Vec& mean) const {
  StoredMean result{mean, Vec(mean.size())};
  if (config_.cluster.index_dtype == IndexDType::kF32) return result;
  const reference::Int8Row int8 = reference::int8_row(mean);
  for (std::size_t d = 0; d < mean.size(); ++d) {
    const bool is_int8 = config_.cluster.index_dtype == IndexDType::kInt8;
    const double step = is_int8 ? int8.scale : reference::step_of(DType::kBF16, mean[d]);
    result.value[d] =
        is_int8 ? int8.codes[d] * int8.scale : reference::rounded(DType::kBF16, mean[d]);
    if (reference::is_near_middle(mean[d], step, kMiddle)) result.slack[d] = step;
  }
  return result;
}

// ------------------------------------------------------------------------------------ select

std::vector<NaiveCache::Member> NaiveCache::members(const Sequence& s, int layer,
                                                    int kv_head) const {
  std::vector<Member> result;
  if (s.segments.empty()) return result;
  for (const NaiveSegment& segment : s.segments[at(layer)][at(kv_head)]) {
    for (const NaiveCluster& cluster : segment.clusters) result.push_back({&segment, &cluster});
  }
  return result;
}

std::vector<NaiveCache::Score> NaiveCache::scores(const std::vector<Member>& members,
                                                  const Vec& query) const {
  const bool is_int8 = config_.cluster.index_dtype == IndexDType::kInt8;
  const Vec scored = is_int8 ? reference::quantised_query(query) : query;
  const bool has_spread = config_.select.tail == Tail::kSecondMoment;
  std::vector<Score> result;
  for (const auto& [segment, cluster] : members) {
    const double spread = has_spread ? cluster->spread : 0;
    const double w = reference::spread_weight(query, spread, segment->profile, scale_);
    const double z = scale_ * reference::dot(scored, cluster->key.value);
    const auto t_of = [&](double logit) {
      return reference::mass_score(logit * reference::kLog2E, w, config_.model.logit_softcap) /
             reference::kLog2E;
    };
    double slack = 0;
    for (std::size_t d = 0; d < query.size(); ++d) {
      slack += scale_ * std::abs(query[d]) * cluster->key.slack[d];
    }
    // A cap bends t: it may move by less, or by more.
    const double t = t_of(z);
    if (slack > 0) slack = std::max({slack, t - t_of(z - slack), std::abs(t_of(z + slack) - t)});
    // Results move by e^slack - 1, which is more than the slack, and less than this.
    result.push_back({z, t, std::expm1(1.1 * slack)});
  }
  return result;
}

double NaiveCache::slack_of_sum(const std::vector<Score>& scores, const Vec& logs, double total) {
  double slack = 0;
  for (std::size_t c = 0; c < scores.size(); ++c)
    slack += std::exp(logs[c] - total) * scores[c].slack;
  return slack;
}

std::vector<int> NaiveCache::taken(SequenceId id, int layer, int kv_head,
                                   const std::vector<std::int32_t>& positions,
                                   const std::vector<std::int32_t>& row_counts) const {
  const Sequence& s = sequences_.at(id);
  const std::vector<Member> all = members(s, layer, kv_head);
  std::vector<int> result(all.size());
  std::size_t next = 0;
  const auto expect = [&](int token) {
    require(next < positions.size() && positions[next] == token,
            "token_ids: entry " + std::to_string(next) + " is not " + std::to_string(token));
    ++next;
  };
  for (int token = 0; token < sinks(s); ++token) expect(token);
  std::size_t c = 0;
  for (const std::int32_t rows : row_counts) {
    require(next < positions.size(), "token_ids: ends within the choice");
    while (c < all.size() && all[c].cluster->tokens.front() != positions[next]) ++c;
    require(c < all.size(), "token_ids: an entry begins with " + std::to_string(positions[next]) +
                                ", which begins no later cluster");
    require(rows >= 1 && rows <= count_of(*all[c].cluster), "row_counts: more than the cluster");
    for (int i = 0; i < rows; ++i) expect(all[c].cluster->tokens[at(i)]);
    result[c++] = rows;
  }
  const int first_pending = is_dense_layer(layer) ? sinks(s) : std::max(sinks(s), s.visible_end);
  for (int token = first_pending; token < s.length; ++token) expect(token);
  require(next == positions.size(), "token_ids: more than sinks, choice and pending");
  return result;
}

bool NaiveCache::check_choice(SequenceId id, int layer, int kv_head, const std::vector<Vec>& judges,
                              const std::vector<int>& taken, int budget) const {
  const std::vector<Member> all = members(sequences_.at(id), layer, kv_head);
  const int clustered_tokens = clustered(id, layer);
  const int sum = std::accumulate(taken.begin(), taken.end(), 0);
  const int wanted =
      attends_to_all(id, layer, budget) ? clustered_tokens : std::min(budget, clustered_tokens);
  require(sum == wanted,
          "the choice has " + std::to_string(sum) + " rows, not " + std::to_string(wanted));
  if (sum == clustered_tokens) return true;

  const bool alone = config_.select.grouping == HeadGrouping::kPerQueryHead;
  std::vector<int> sizes;
  for (const Member& member : all) sizes.push_back(count_of(*member.cluster));
  Vec rank(all.size()), slack(all.size());
  for (const Vec& query : judges) {
    const std::vector<Score> of_head = scores(all, query);
    Vec t;
    for (const Score& score : of_head) t.push_back(score.t);
    const double total = log_sum_exp(t);
    const double total_slack = slack_of_sum(of_head, t, total);
    for (std::size_t c = 0; c < all.size(); ++c) {
      rank[c] += alone ? of_head[c].z : std::exp(t[c] - total);
      slack[c] = std::max(slack[c], of_head[c].slack + (alone ? 0 : total_slack));
    }
  }
  // Votes in logs, so that tolerances are relative. Below e^-80 fp32 has lost them.
  if (!alone) {
    for (double& r : rank) r = std::log(std::max(r, 1.8e-35));
  }
  // A cluster taken whole may not rank below one that was not; the trimmed one lies between.
  for (std::size_t in = 0; in < all.size(); ++in) {
    for (std::size_t out = 0; out < all.size(); ++out) {
      if (taken[in] == 0 || taken[out] == sizes[out] || in == out) continue;
      if (taken[in] < sizes[in] && taken[out] > 0) throw Mismatch("two clusters are trimmed");
      const double gap = rank[out] - rank[in];
      require(gap <= kRankTolerance + slack[in] + slack[out],
              "the choice leaves out a cluster that ranks above another by " + std::to_string(gap));
    }
  }
  return reference::choose(rank, sizes, budget) == taken;
}

// ------------------------------------------------------------------------------------ attend

std::vector<NaiveCache::Kept> NaiveCache::kept(const std::vector<Member>& members,
                                               const std::vector<Vec>& judges) const {
  std::vector<Kept> result(members.size(), Kept::kNo);
  const double limit = std::log(std::max(double{config_.select.tail_share}, 1e-300));
  for (const Vec& judge : judges) {
    const std::vector<Score> of_head = scores(members, judge);
    Vec mass;
    for (std::size_t c = 0; c < members.size(); ++c) {
      mass.push_back(of_head[c].t + std::log(count_of(*members[c].cluster)));
    }
    const double total = log_sum_exp(mass);
    const double total_slack = slack_of_sum(of_head, mass, total);
    for (std::size_t c = 0; c < members.size(); ++c) {
      const double above = mass[c] - total - limit;
      if (std::abs(above) < kRankTolerance + of_head[c].slack + total_slack) {
        if (result[c] == Kept::kNo) result[c] = Kept::kDoubtful;
      } else if (above > 0) {
        result[c] = Kept::kYes;
      }
    }
  }
  return result;
}

NaiveOutput NaiveCache::attend(SequenceId id, int layer, int kv_head, const Vec& query,
                               const std::vector<Vec>& judges,
                               const std::vector<int>& taken) const {
  const Sequence& s = sequences_.at(id);
  const std::vector<Member> all = members(s, layer, kv_head);
  std::vector<reference::Term> terms;
  Vec operand = query;
  for (double& x : operand) x = reference::rounded(operands_, x);
  const auto add_row = [&](int token) {
    const Row& r = s.rows[at(layer)][at(token)][at(kv_head)];
    const double logit = scale_ * reference::dot(operand, r.key);
    terms.push_back({reference::soft_capped(logit, config_.model.logit_softcap), 1, r.value});
  };
  const int first_pending = is_dense_layer(layer) ? sinks(s) : std::max(sinks(s), s.visible_end);
  for (int token = 0; token < sinks(s); ++token) add_row(token);
  for (std::size_t c = 0; c < all.size(); ++c) {
    for (int i = 0; i < taken[c]; ++i) add_row(all[c].cluster->tokens[at(i)]);
  }
  for (int token = first_pending; token < s.length; ++token) add_row(token);
  const std::size_t num_rows = terms.size();

  std::vector<std::size_t> tail;  // clusters of the terms after the rows
  std::vector<Kept> is_kept;
  std::vector<Score> of_query;
  Vec mean_of_all(value_dim_);
  if (config_.select.tail != Tail::kNone && !all.empty()) {
    for (const NaiveSegment& segment : s.segments[at(layer)][at(kv_head)]) {
      for (std::size_t d = 0; d < value_dim_; ++d) {
        mean_of_all[d] += segment.value_sum[d] / clustered(id, layer);
      }
    }
    is_kept = kept(all, judges);
    of_query = scores(all, query);
    for (std::size_t c = 0; c < all.size(); ++c) {
      const int rest = count_of(*all[c].cluster) - taken[c];
      if (rest == 0) continue;
      const bool own = is_kept[c] != Kept::kNo;
      terms.push_back({of_query[c].t, static_cast<double>(rest),
                       own ? all[c].cluster->value.value : mean_of_all});
      tail.push_back(c);
    }
  }
  const reference::State state = reference::softmax(terms, static_cast<int>(value_dim_));
  NaiveOutput result{state.out, state.lse, 0, 0};
  for (std::size_t i = 0; i < tail.size(); ++i) {
    const reference::Term& term = terms[num_rows + i];
    const std::size_t c = tail[i];
    const double share = term.weight * std::exp(term.logit - state.lse);
    result.lse_slack += share * of_query[c].slack;
    result.out_slack += share * of_query[c].slack * distance(term.value, state.out);
    if (is_kept[c] != Kept::kNo) result.out_slack += share * norm(all[c].cluster->value.slack);
    if (is_kept[c] == Kept::kDoubtful)
      result.out_slack += share * distance(term.value, mean_of_all);
  }
  return result;
}

}  // namespace clusterkv::testing
