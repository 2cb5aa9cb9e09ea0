// SPDX-License-Identifier: Apache-2.0
//
// What the model-based test knows of a running step, and how it judges what the library did.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/pipeline/model_config.hpp"
#include "tests/reference/naive_cache.hpp"
#include "tests/support/cache_fixture.hpp"

namespace clusterkv::testing {

struct Tally {
  int operations = 0;
  int heads = 0;      ///< outputs compared
  int choices = 0;    ///< choices compared
  int doubtful = 0;   ///< left out: an assignment too close for fp32
  int near_ties = 0;  ///< the library chose otherwise among ranks as good as equal
  std::string failure;
};

class ModelChecks {
 public:
  Coverage coverage;

 protected:
  using Lists = std::vector<std::vector<std::vector<std::int32_t>>>;
  using Layout = TypedTensor::Layout;

  explicit ModelChecks(std::uint64_t seed)
      : random_(seed),
        config_(draw_config(random_, coverage)),
        pool_(make_thread_pool(pick("threads", {1, 2}))),
        harness_(config_, kLimits, {Backend::kCpu, pool_.get(), nullptr}),
        naive_(config_, runs_on_cuda()),
        precision_(!runs_on_cuda()                         ? 2e-5
                   : config_.model.kv_dtype == DType::kF16 ? 1e-3
                                                           : 8e-3) {}

  static constexpr PlanLimits kLimits{.max_rows = 5,
                                      .max_new_tokens = 700,
                                      .max_budget_tokens = 64,
                                      .max_context_tokens = 5 * 1500};

  [[nodiscard]] const ModelShape& model() const { return config_.model; }
  [[nodiscard]] bool is_alone() const {
    return config_.select.grouping == HeadGrouping::kPerQueryHead;
  }
  template <class T>
  T pick(const std::string& name, std::initializer_list<T> values) {
    return coverage.draw(random_, name, values);
  }
  DType pick_dtype(const std::string& name) {
    return pick(name, {DType::kF32, DType::kF16, DType::kBF16});
  }
  static void require(bool condition, const std::string& what) {
    if (!condition) throw Mismatch(what);
  }
  [[nodiscard]] int value_dim() const { return value_dim_of(model()); }
  [[nodiscard]] Vec vector_at(const Vec& all, std::size_t vector) const {
    return part_of(all, vector, model().head_dim);
  }
  [[nodiscard]] Vec value_at(const Vec& all, std::size_t vector) const {
    return part_of(all, vector, value_dim());
  }
  static Vec part_of(const Vec& all, std::size_t vector, int dim) {
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(vector) * dim;
    return {first, first + dim};
  }

  /// Queries of the heads that share a KV head, at a query row.
  [[nodiscard]] std::vector<Vec> group_queries(std::size_t query_row, int kv_head) const {
    const int group = model().num_q_heads / model().num_kv_heads;
    std::vector<Vec> result;
    for (int g = 0; g < group; ++g) {
      result.push_back(vector_at(queries_, query_row * std::size_t(model().num_q_heads) +
                                               std::size_t(kv_head * group + g)));
    }
    return result;
  }

  /// Rows taken of each cluster by a list. \throws Mismatch
  [[nodiscard]] std::vector<int> taken(int layer, std::size_t row, int head, const Choice& choice,
                                       const Lists& positions) const {
    const auto list = static_cast<std::size_t>(head);
    std::vector<std::int32_t> counts;
    for (const auto& entry : choice.lists[row][list]) counts.push_back(entry.rows);
    const int group = model().num_q_heads / model().num_kv_heads;
    return naive_.taken(rows_[row].id, layer, is_alone() ? head / group : head,
                        positions[row][list], counts);
  }

  /// visit(row, query_row) for the rows that attend.
  template <class Visit>
  void for_each_query(const Visit& visit) const {
    std::size_t query_row = 0;
    for (std::size_t row = 0; row < rows_.size(); ++row) {
      if (rows_[row].num_query_tokens > 0) visit(row, query_row++);
    }
  }

  void check_choices(int layer, const Choice& choice, const Lists& positions) {
    const int group = model().num_q_heads / model().num_kv_heads;
    for_each_query([&](std::size_t row, std::size_t query_row) {
      const StepRow& r = rows_[row];
      if (r.id == kNoSequence) return;
      const int budget = r.budget_tokens > 0 ? r.budget_tokens : config_.select.budget_tokens;
      for (int head = 0; head < (is_alone() ? model().num_q_heads : model().num_kv_heads); ++head) {
        const int kv_head = is_alone() ? head / group : head;
        if (naive_.is_doubtful(r.id, layer, kv_head)) continue;
        std::vector<Vec> judges = group_queries(query_row, kv_head);
        if (is_alone()) judges = {judges[static_cast<std::size_t>(head % group)]};
        const bool same = naive_.check_choice(r.id, layer, kv_head, judges,
                                              taken(layer, row, head, choice, positions), budget);
        ++tally_.choices;
        tally_.near_ties += same ? 0 : 1;
      }
    });
  }

  void check_outputs(int layer, const Choice& choice, const Lists& positions,
                     const TypedTensor& out, const std::vector<float>* lse) {
    const Vec all = out.read();
    const int group = model().num_q_heads / model().num_kv_heads;
    for_each_query([&](std::size_t row, std::size_t query_row) {
      for (int head = 0; head < model().num_q_heads; ++head) {
        const std::size_t vector =
            query_row * static_cast<std::size_t>(model().num_q_heads) + std::size_t(head);
        const Vec ours = value_at(all, vector);
        const double our_lse = lse != nullptr ? double{(*lse)[vector]} : NAN;
        if (rows_[row].id == kNoSequence) {
          require(ours == Vec(ours.size()), "padding has an output");
          require(lse == nullptr || our_lse == -INFINITY, "padding has an LSE");
          continue;
        }
        ++tally_.heads;
        if (naive_.is_doubtful(rows_[row].id, layer, head / group)) {
          ++tally_.doubtful;
          continue;
        }
        std::vector<Vec> judges = group_queries(query_row, head / group);
        const Vec query = judges[static_cast<std::size_t>(head % group)];
        if (is_alone()) judges = {query};
        const std::vector<int> rows =
            taken(layer, row, is_alone() ? head : head / group, choice, positions);
        const NaiveOutput wanted =
            naive_.attend(rows_[row].id, layer, head / group, query, judges, rows);
        compare(ours, wanted, out.view().dtype);
        require(lse == nullptr ||
                    std::abs(our_lse - wanted.lse) <
                        precision_ * std::max(1.0, std::abs(wanted.lse)) + wanted.lse_slack,
                "LSE " + std::to_string(our_lse) + ", not " + std::to_string(wanted.lse));
      }
    });
  }

  /// Half precision rounds each element once more.
  void compare(const Vec& ours, const NaiveOutput& wanted, DType dtype) const {
    double difference = 0;
    double norm = 0;
    for (std::size_t d = 0; d < ours.size(); ++d) {
      difference += std::pow(ours[d] - wanted.out[d], 2);
      norm += std::pow(wanted.out[d], 2);
    }
    const double rounding = dtype == DType::kF32 ? 0 : dtype == DType::kF16 ? 4.9e-4 : 3.9e-3;
    const double limit = (precision_ + rounding) * std::sqrt(norm) + wanted.out_slack;
    require(std::sqrt(difference) <= limit,
            "an output differs by " + std::to_string(std::sqrt(difference)) + " of " +
                std::to_string(std::sqrt(norm)) + ", allowed " + std::to_string(limit));
  }

  void check_stats(std::int64_t num_live) const {
    const CacheStats stats = harness_.cache.stats();
    const StepStats& s = stats.step;
    require(s.attended_tokens == s.sink_tokens + s.selected_tokens + s.pending_tokens,
            "stats: attended tokens do not add up");
    require(stats.live_tokens == naive_.held_tokens(), "stats: live tokens");
    require(stats.live_sequences == num_live, "stats: sequences");
  }

  void check_rows() {
    if (lengths_.empty()) return;
    const auto at =
        std::next(lengths_.begin(), random_.between(0, static_cast<int>(lengths_.size()) - 1));
    const int first = random_.between(0, std::max(0, at->second - 1));
    const int last = random_.between(first, at->second);
    const int layer = random_.between(0, model().num_layers - 1);
    const DType dtype = pick_dtype("read_dtype");
    const std::int64_t heads = model().num_kv_heads;
    TypedTensor key({last - first, heads, model().head_dim}, dtype, Layout::kPadded),
        value({last - first, heads, value_dim()}, dtype, Layout::kByHead);
    harness_.cache.read_rows(layer, at->first, first, last, key.view(), value.view());
    ++tally_.operations;
    const Vec keys = key.read(), values = value.read();
    std::size_t vector = 0;
    for (int token = first; token < last; ++token) {
      for (int head = 0; head < model().num_kv_heads; ++head, ++vector) {
        const NaiveCache::Row& row = naive_.row(at->first, layer, token, head);
        const auto require_same = [&](const Vec& ours, Vec wanted) {
          for (double& x : wanted) x = reference::rounded(dtype, x);
          require(ours == wanted, "read_rows gives other rows");
        };
        require_same(vector_at(keys, vector), row.key);
        require_same(value_at(values, vector), row.value);
      }
    }
  }

  Random random_;
  CacheConfig config_;
  std::unique_ptr<Executor> pool_;
  Harness<ClusterKVCache> harness_;
  NaiveCache naive_;
  double precision_;  ///< that fp32 sums leave, and weights rounded for matrix units
  std::map<SequenceId, int> lengths_;  ///< of sequences that had a step
  std::vector<StepRow> rows_;          ///< of the running step
  Vec queries_;                        ///< of the layer in hand, as stored
  Tally tally_;
};

}  // namespace clusterkv::testing
