// SPDX-License-Identifier: Apache-2.0
#include "tests/reference/naive_cache.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cluster/rules.hpp"
#include "kernels/common/numeric.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kBlock = 64;

double dot(const Vec& a, const Vec& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

Vec mean_of(const std::vector<const Vec*>& rows) {
  Vec mean(rows.front()->size());
  for (const Vec* row : rows) {
    for (std::size_t d = 0; d < mean.size(); ++d) mean[d] += (*row)[d];
  }
  for (double& x : mean) x /= static_cast<double>(rows.size());
  return mean;
}

double round_to(double x, DType dtype) {
  const auto value = static_cast<float>(x);
  if (dtype == DType::kF16) return f16_to_float(float_to_f16(value));
  if (dtype == DType::kBF16) return bf16_to_float(float_to_bf16(value));
  return value;
}

}  // namespace

NaiveCache::NaiveCache(const CacheConfig& config)
    : config_(config),
      scale_(config.model.softmax_scale > 0 ? config.model.softmax_scale
                                            : 1 / std::sqrt(config.model.head_dim)) {}

bool NaiveCache::is_dense_layer(int layer) const {
  const auto& ids = config_.model.layers;
  return (ids.empty() ? layer : ids[static_cast<std::size_t>(layer)]) < config_.select.dense_layers;
}

int NaiveCache::sinks(const Sequence& s) const {
  return std::min(s.length, config_.cluster.sink_tokens);
}

bool NaiveCache::is_everything(const Sequence& s, int layer, int budget) const {
  return is_dense_layer(layer) || s.ranges.empty() ||
         s.length <= double{config_.select.dense_threshold} * budget;
}

int NaiveCache::length(SequenceId id) const {
  return sequences_.at(id).length;
}

const NaiveCache::Row& NaiveCache::row(SequenceId id, int layer, int token, int kv_head) const {
  return sequences_.at(id).rows[static_cast<std::size_t>(layer)][static_cast<std::size_t>(token)]
                               [static_cast<std::size_t>(kv_head)];
}

// ---------------------------------------------------------------------------------- one step

void NaiveCache::step(const StepRow& row, const std::vector<std::vector<std::vector<Row>>>& rows) {
  Sequence& s = sequences_[row.id];
  seal(s);
  s.rows.resize(rows.size());
  for (std::size_t layer = 0; layer < rows.size(); ++layer) {
    for (std::vector<Row> heads : rows[layer]) {
      for (Row& r : heads) {
        for (double& x : r.key) x = round_to(x, config_.model.kv_dtype);
        for (double& x : r.value) x = round_to(x, config_.model.kv_dtype);
      }
      s.rows[layer].push_back(std::move(heads));
    }
  }
  const int before = s.length;
  s.length += row.num_new_tokens;
  const ClusterConfig& c = config_.cluster;
  const bool decode = row.phase == Phase::kDecode;
  const int end = decode ? before : s.length;
  int first = std::max(s.visible_end, std::min(c.sink_tokens, s.length));
  const auto add = [&](int count, int least) {
    s.sealing.emplace_back(first, first + count);
    s.sealing_clusters.push_back(cluster::num_clusters(count, c.tokens_per_cluster, least));
    first += count;
  };
  const int whole = decode ? c.window_tokens : c.segment_tokens;
  while (whole > 0 && end - first >= whole) add(whole, decode ? c.min_window_clusters : 1);
  if (row.phase == Phase::kPrefillLast && end - first >= c.window_tokens) add(end - first, 1);
}

void NaiveCache::seal(Sequence& s) {
  const auto heads = static_cast<std::size_t>(config_.model.num_kv_heads);
  s.segments.resize(static_cast<std::size_t>(config_.model.num_layers),
                    std::vector<std::vector<NaiveSegment>>(heads));
  for (std::size_t i = 0; i < s.sealing.size(); ++i) {
    const auto [first, last] = s.sealing[i];
    int first_block = 0;
    for (const int clusters : s.cluster_counts) first_block += (clusters + kBlock - 1) / kBlock;
    for (int layer = 0; layer < config_.model.num_layers; ++layer) {
      if (is_dense_layer(layer)) continue;
      for (int head = 0; head < config_.model.num_kv_heads; ++head) {
        s.segments[static_cast<std::size_t>(layer)][static_cast<std::size_t>(head)].push_back(
            cluster(s, layer, head, first, last, s.sealing_clusters[i], first_block));
      }
    }
    s.ranges.emplace_back(first, last);
    s.cluster_counts.push_back(s.sealing_clusters[i]);
    s.visible_end = last;
  }
  s.sealing.clear();
  s.sealing_clusters.clear();
}

// ---------------------------------------------------------------------------- cluster, index

std::vector<int> NaiveCache::kmeans(const std::vector<Vec>& keys, std::vector<Vec> centroids,
                                    double& smallest_gap) const {
  std::vector<int> labels(keys.size());
  for (int iteration = 0; iteration < config_.cluster.kmeans_iterations; ++iteration) {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      double best = -std::numeric_limits<double>::infinity();
      double second = best;
      for (std::size_t c = 0; c < centroids.size(); ++c) {
        double score = dot(keys[i], centroids[c]);
        const double norm2 = dot(centroids[c], centroids[c]);
        if (config_.cluster.metric == Metric::kCosine) score /= std::max(std::sqrt(norm2), 1e-12);
        if (config_.cluster.metric == Metric::kL2) score -= norm2 / 2;
        if (score > best) {
          second = best;
          best = score;
          labels[i] = static_cast<int>(c);
        } else {
          second = std::max(second, score);
        }
      }
      if (centroids.size() > 1) {
        const double size = std::max({std::abs(best), std::sqrt(dot(keys[i], keys[i])), 1e-30});
        smallest_gap = std::min(smallest_gap, (best - second) / size);
      }
    }
    for (std::size_t c = 0; c < centroids.size(); ++c) {
      std::vector<const Vec*> members;
      for (std::size_t i = 0; i < keys.size(); ++i) {
        if (labels[i] == static_cast<int>(c)) members.push_back(&keys[i]);
      }
      if (!members.empty()) centroids[c] = mean_of(members);
    }
  }
  return labels;
}

Vec NaiveCache::stored(const Vec& x) const {
  Vec result = x;
  double largest = 0;
  for (const double v : x) largest = std::max(largest, std::abs(v));
  const double scale = std::max(largest / 127, 1e-12);
  for (double& v : result) {
    if (config_.cluster.index_dtype == IndexDType::kInt8) v = std::nearbyint(v / scale) * scale;
    if (config_.cluster.index_dtype == IndexDType::kBF16) v = round_to(v, DType::kBF16);
  }
  return result;
}

NaiveSegment NaiveCache::cluster(const Sequence& s, int layer, int kv_head, int first, int last,
                                 int clusters, int first_block) const {
  const auto row_at = [&](int token) -> const Row& {
    return s.rows[static_cast<std::size_t>(layer)][static_cast<std::size_t>(token)]
                 [static_cast<std::size_t>(kv_head)];
  };
  const int count = last - first;
  std::vector<Vec> keys;
  for (int t = first; t < last; ++t) keys.push_back(row_at(t).key);
  std::vector<std::int32_t> drawn(static_cast<std::size_t>(count));
  const auto& ids = config_.model.layers;
  const int model_layer = ids.empty() ? layer : ids[static_cast<std::size_t>(layer)];
  cluster::random_starts(cluster::start_seed(config_.cluster.seed, model_layer, kv_head, first),
                         count, clusters, drawn.data());
  std::vector<Vec> starts;
  for (int c = 0; c < clusters; ++c) {
    const int token = config_.cluster.seed != 0 ? drawn[static_cast<std::size_t>(c)]
                                                : cluster::even_start(c, count, clusters);
    starts.push_back(keys[static_cast<std::size_t>(token)]);
  }
  NaiveSegment segment;
  const std::vector<int> labels = kmeans(keys, starts, segment.smallest_gap);
  const auto dim = keys.front().size();
  segment.profile.assign(dim, 0.0);
  std::vector<Vec> variances;
  for (int c = 0; c < clusters; ++c) {
    NaiveCluster made;
    std::vector<const Vec*> member_keys, member_values;
    for (int i = 0; i < count; ++i) {
      if (labels[static_cast<std::size_t>(i)] != c) continue;
      made.tokens.push_back(first + i);
      member_keys.push_back(&row_at(first + i).key);
      member_values.push_back(&row_at(first + i).value);
    }
    if (made.tokens.empty()) continue;
    made.id = kBlock * first_block + static_cast<int>(segment.clusters.size());
    const Vec mean = mean_of(member_keys);
    Vec variance(dim);
    for (const Vec* key : member_keys) {
      for (std::size_t d = 0; d < dim; ++d) variance[d] += std::pow((*key)[d] - mean[d], 2);
    }
    for (std::size_t d = 0; d < dim; ++d) {
      segment.profile[d] += variance[d] / count;
      variance[d] /= static_cast<double>(member_keys.size());
    }
    variances.push_back(variance);
    made.mean_key = stored(mean);
    made.mean_value = stored(mean_of(member_values));
    segment.clusters.push_back(std::move(made));
  }
  for (std::size_t c = 0; c < segment.clusters.size(); ++c) {
    double sum = 0;
    int live = 0;
    for (std::size_t d = 0; d < dim; ++d) {
      if (segment.profile[d] <= 0) continue;
      sum += variances[c][d] / segment.profile[d];
      ++live;
    }
    segment.clusters[c].spread = live > 0 ? sum / live : 0;
  }
  return segment;
}

bool NaiveCache::is_doubtful(SequenceId id, int layer, int kv_head) const {
  const Sequence& s = sequences_.at(id);
  if (s.segments.empty()) return false;
  const auto& segments =
      s.segments[static_cast<std::size_t>(layer)][static_cast<std::size_t>(kv_head)];
  return std::any_of(segments.begin(), segments.end(),
                     [](const NaiveSegment& segment) { return segment.smallest_gap < 1e-5; });
}

// ------------------------------------------------------------------------------------ select

std::vector<NaiveCache::Score> NaiveCache::scores(const Sequence& s, int layer, int kv_head,
                                                  const Vec& query) const {
  std::vector<Score> result;
  for (const NaiveSegment& segment :
       s.segments[static_cast<std::size_t>(layer)][static_cast<std::size_t>(kv_head)]) {
    double query_spread = 0;
    for (std::size_t d = 0; d < query.size(); ++d) {
      query_spread += 0.5 * scale_ * scale_ * query[d] * query[d] * segment.profile[d];
    }
    for (const NaiveCluster& cluster : segment.clusters) {
      const double z = scale_ * dot(query, cluster.mean_key);
      const double w =
          config_.select.tail == Tail::kSecondMoment ? cluster.spread * query_spread : 0;
      result.push_back({&cluster, z, z + std::log1p(w)});
    }
  }
  return result;
}

NaiveChoice NaiveCache::choose(SequenceId id, int layer, int head, const std::vector<Vec>& queries,
                               int budget) const {
  const Sequence& s = sequences_.at(id);
  NaiveChoice choice;
  if (is_dense_layer(layer) || s.ranges.empty()) return choice;
  const bool per_query_head = config_.select.grouping == HeadGrouping::kPerQueryHead;
  const int group = config_.model.num_q_heads / config_.model.num_kv_heads;
  const int kv_head = per_query_head ? head / group : head;
  struct Candidate {
    double key;
    int id, size;
  };
  std::vector<Candidate> candidates;
  for (const Vec& query : queries) {
    const std::vector<Score> all = scores(s, layer, kv_head, query);
    double max = -std::numeric_limits<double>::infinity();
    for (const Score& score : all) max = std::max(max, score.t);
    double sum = 0;
    for (const Score& score : all) sum += std::exp(score.t - max);
    if (candidates.empty()) {
      for (const Score& score : all) {
        candidates.push_back(
            {0, score.cluster->id, static_cast<int>(score.cluster->tokens.size())});
      }
    }
    for (std::size_t c = 0; c < all.size(); ++c) {
      candidates[c].key += per_query_head ? all[c].z : std::exp(all[c].t - max) / sum;
    }
  }
  if (is_everything(s, layer, budget)) {
    for (const Candidate& c : candidates) choice.clusters.emplace_back(c.id, c.size);
    return choice;
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.key > b.key; });
  int left = budget;
  std::size_t i = 0;
  for (; i < candidates.size() && left > 0; ++i) {
    const int take = std::min(left, candidates[i].size);
    choice.clusters.emplace_back(candidates[i].id, take);
    left -= take;
  }
  // The order among those taken whole does not matter; that around the trimmed one does.
  const auto gap_between = [&](std::size_t a, std::size_t b) {
    return (candidates[a].key - candidates[b].key) / std::max(1e-30, std::abs(candidates[a].key));
  };
  if (i < candidates.size()) choice.gap = std::min(choice.gap, gap_between(i - 1, i));
  if (i >= 2) choice.gap = std::min(choice.gap, gap_between(i - 2, i - 1));
  std::sort(choice.clusters.begin(), choice.clusters.end());
  return choice;
}

std::vector<int> NaiveCache::positions(SequenceId id, int layer, int kv_head,
                                       const NaiveChoice& choice) const {
  const Sequence& s = sequences_.at(id);
  std::vector<int> result(static_cast<std::size_t>(sinks(s)));
  std::iota(result.begin(), result.end(), 0);
  const int stored_end = s.ranges.empty() ? sinks(s) : s.visible_end;
  if (is_dense_layer(layer)) {
    for (int t = sinks(s); t < stored_end; ++t) result.push_back(t);
  } else if (!s.ranges.empty()) {
    for (const auto& [cluster_id, rows] : choice.clusters) {
      for (const NaiveSegment& segment :
           s.segments[static_cast<std::size_t>(layer)][static_cast<std::size_t>(kv_head)]) {
        for (const NaiveCluster& cluster : segment.clusters) {
          if (cluster.id != cluster_id) continue;
          result.insert(result.end(), cluster.tokens.begin(), cluster.tokens.begin() + rows);
        }
      }
    }
  }
  for (int t = stored_end; t < s.length; ++t) result.push_back(t);
  return result;
}

// ------------------------------------------------------------------------------------ attend

NaiveOutput NaiveCache::attend(SequenceId id, int layer, int q_head, const std::vector<Vec>& group,
                               const NaiveChoice& choice, int budget) const {
  const Sequence& s = sequences_.at(id);
  const int heads_per_kv = config_.model.num_q_heads / config_.model.num_kv_heads;
  const int kv_head = q_head / heads_per_kv;
  const Vec& query = group[static_cast<std::size_t>(q_head % heads_per_kv)];
  std::vector<std::pair<double, const Vec*>> terms;  // (logit, value)
  std::vector<double> weights;
  for (const int token : positions(id, layer, kv_head, choice)) {
    const Row& r = row(id, layer, token, kv_head);
    terms.emplace_back(scale_ * dot(query, r.key), &r.value);
    weights.push_back(1);
  }
  Vec mean_of_all;
  const bool tail = config_.select.tail != Tail::kNone && !is_everything(s, layer, budget);
  if (tail) {
    std::vector<const Vec*> values;
    for (int t = sinks(s); t < s.visible_end; ++t)
      values.push_back(&row(id, layer, t, kv_head).value);
    mean_of_all = mean_of(values);
    // A cluster is kept if it matters to any head of the group; alone when heads choose alone.
    std::vector<Vec> judges = group;
    if (config_.select.grouping == HeadGrouping::kPerQueryHead) judges = {query};
    std::vector<bool> kept;
    for (const Vec& judge : judges) {
      const std::vector<Score> all = scores(s, layer, kv_head, judge);
      double max = -std::numeric_limits<double>::infinity();
      for (const Score& score : all) max = std::max(max, score.t);
      double sum = 0;
      for (const Score& score : all) {
        sum += static_cast<double>(score.cluster->tokens.size()) * std::exp(score.t - max);
      }
      kept.resize(all.size());
      for (std::size_t c = 0; c < all.size(); ++c) {
        const double mass =
            static_cast<double>(all[c].cluster->tokens.size()) * std::exp(all[c].t - max);
        if (mass >= double{config_.select.tail_share} * sum) kept[c] = true;
      }
    }
    const std::vector<Score> all = scores(s, layer, kv_head, query);
    for (std::size_t c = 0; c < all.size(); ++c) {
      int taken = 0;
      for (const auto& [cluster_id, rows] : choice.clusters) {
        if (cluster_id == all[c].cluster->id) taken = rows;
      }
      const int rest = static_cast<int>(all[c].cluster->tokens.size()) - taken;
      if (rest == 0) continue;
      terms.emplace_back(all[c].t, kept[c] ? &all[c].cluster->mean_value : &mean_of_all);
      weights.push_back(rest);
    }
  }
  NaiveOutput result;
  result.out.assign(query.size(), 0.0);
  double max = -std::numeric_limits<double>::infinity();
  for (const auto& term : terms) max = std::max(max, term.first);
  double sum = 0;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const double e = weights[i] * std::exp(terms[i].first - max);
    sum += e;
    for (std::size_t d = 0; d < query.size(); ++d) result.out[d] += e * (*terms[i].second)[d];
  }
  for (double& x : result.out) x = sum > 0 ? x / sum : 0;
  result.lse = sum > 0 ? max + std::log(sum) : -std::numeric_limits<double>::infinity();
  return result;
}

}  // namespace clusterkv::testing
