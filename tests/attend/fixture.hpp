// SPDX-License-Identifier: Apache-2.0
//
// A scene with a choice, scores, totals and partials: what attend's ops read, made from the
// contracts and the fp64 reference, without the other stages.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/attend/attend.hpp"
#include "tests/reference/attend.hpp"
#include "tests/reference/select.hpp"
#include "tests/support/compare.hpp"
#include "tests/support/stores.hpp"

namespace clusterkv::attend {

using reference::Vec;
using testing::OpCase;
using testing::Scene;

struct Ops {
  void (*attend_rows)(const AttendParams&, int, int, int);
  void (*attend_tail)(const AttendParams&, int, int, int);
  void (*merge_partials)(const MergeParams&, int, int);
  void (*decode)(const DecodeParams&, int, int);
  void (*merge_states)(const StateParams&, std::int64_t, int);
};
inline Ops ops_of(Backend) {
  return {cpu().attend_rows, cpu().attend_tail, cpu().merge_partials, cpu().decode,
          cpu().merge_states};
}

struct Heads {
  int q;
  int kv;
};
inline std::string name_of(Heads heads) {
  return "q" + std::to_string(heads.q) + "_kv" + std::to_string(heads.kv);
}

/// Of logits of about one, and of a few: none, and one that bends most of them.
inline constexpr float kSoftcaps[] = {0.0F, 0.8F};

/// Query tokens of the row, and of the longest one of the plan.
struct QueryTokens {
  int row = 1;
  int plan = 1;
};

/// By heads of the row, those of all its query tokens.
struct Result {
  std::vector<float> out, lse, tail_mass;
  std::vector<std::int64_t> kept;
};

class Attention {
 public:
  static constexpr int kRow = 1;  ///< plan row 0 belongs to somebody else
  static constexpr float kTailShare = 4e-3F;

  /// With several query tokens, `shape` has the query heads of all of them.
  Attention(const testing::SceneShape& shape, HeadGrouping grouping, std::uint64_t seed = 1,
            QueryTokens tokens = {})
      : scene(shape, seed),
        grouping_(grouping),
        tokens_(tokens),
        e_(static_cast<std::size_t>(scene.num_clusters() * shape.num_q_heads)),
        sums_(scene.blocks.size() * static_cast<std::size_t>(shape.num_q_heads)),
        totals_(2 * static_cast<std::size_t>(plan_heads())),
        heads_(2 * static_cast<std::size_t>(plan_heads()) * kMaxPieces),
        outputs_(heads_.size() * static_cast<std::size_t>(value_dim())) {
    choice.resize(static_cast<std::size_t>(selection_heads()));
    clear_lists();
    write_scores();
    views_[kRow] = scene.view(1);
    views_[kRow].num_query_tokens = tokens_.row;
  }

  [[nodiscard]] int value_dim() const { return scene.shape.op.dims().value; }
  /// Of one token.
  [[nodiscard]] int num_q_heads() const { return scene.shape.num_q_heads / tokens_.row; }
  /// Query heads of a row of the plan, at most.
  [[nodiscard]] int plan_heads() const { return num_q_heads() * tokens_.plan; }
  [[nodiscard]] int token_of(int head) const {
    return head % scene.group() / (scene.group() / tokens_.row);
  }
  /// Where a head of the row is in tensors [token, q_head].
  [[nodiscard]] std::size_t output_of(int head) const {
    const int heads = scene.group() / tokens_.row;
    return static_cast<std::size_t>(token_of(head) * num_q_heads() + head / scene.group() * heads +
                                    head % heads);
  }

  [[nodiscard]] int selection_heads() const {
    return grouping_ == HeadGrouping::kShared ? scene.shape.num_kv_heads : scene.shape.num_q_heads;
  }
  [[nodiscard]] int selection_head(int q_head) const {
    return grouping_ == HeadGrouping::kShared ? q_head / scene.group() : q_head;
  }
  [[nodiscard]] int kv_head_of(int selection_head) const {
    return grouping_ == HeadGrouping::kShared ? selection_head : selection_head / scene.group();
  }

  /// About one cluster in three, whole or trimmed, another choice for each selection head.
  void choose_some() {
    for (int head = 0; head < selection_heads(); ++head) {
      choice[static_cast<std::size_t>(head)].clear();
      for (const auto& c : scene.clusters[static_cast<std::size_t>(kv_head_of(head))]) {
        if (scene.random.between(0, 2) != 0) continue;
        const int taken =
            scene.random.between(0, 1) == 0 ? c.size : scene.random.between(1, c.size);
        choice[static_cast<std::size_t>(head)][c.id] = taken;
      }
    }
    write_lists();
  }
  void write_lists() {
    for (int head = 0; head < selection_heads(); ++head) write_list(head);
  }

  AttendParams params() {
    AttendParams p{};
    p.rows = views_;
    p.query = scene.query.data();
    p.stored = scene.stored.view();
    p.live = scene.live.view();
    p.slots = slots;
    p.lists = lists();
    p.all_rows = all_rows;
    p.partials = {heads_.data(), outputs_.data(), plan_heads(), value_dim()};
    p.num_q_heads = num_q_heads();
    p.query_tokens = tokens_.plan;
    p.num_kv_heads = scene.shape.num_kv_heads;
    p.softmax_scale = scale;
    p.logit_softcap = softcap;
    p.tail = tail;
    p.tail_share = kTailShare;
    p.index = scene.index.view();
    p.scores = scores_;
    p.totals = totals_.data();
    return p;
  }
  SequenceView& view() { return views_[kRow]; }

  /// All pieces of all heads, then the merge into f32 tensors.
  Result run(bool rows_part = true, bool tail_part = true, bool backwards = false) {
    const Ops ops = ops_of(scene.shape.op.backend);
    const AttendParams p = params();
    for (int head = 0; head < selection_heads(); ++head) {
      const int rows = num_row_pieces(num_attended_rows(p, kRow, head), kCpuPieceRows);
      for (int i = 0; i < rows; ++i) ops.attend_rows(p, kRow, head, backwards ? rows - 1 - i : i);
      if (!has_tail(p, kRow)) continue;
      const int pieces = num_tail_pieces(view().num_blocks);
      for (int i = 0; i < pieces; ++i)
        ops.attend_tail(p, kRow, head, backwards ? pieces - 1 - i : i);
    }
    return merge(p, rows_part, tail_part);
  }
  Result merge(const AttendParams& p, bool rows_part, bool tail_part) {
    return collect(
        [&](const MergeParams& merge) {
          for (int head = 0; head < scene.shape.num_q_heads; ++head) {
            ops_of(scene.shape.op.backend).merge_partials(merge, kRow, head);
          }
        },
        p, rows_part, tail_part);
  }
  /// What run(merge params) writes.
  template <class Run>
  Result collect(const Run& run, const AttendParams& p, bool rows_part, bool tail_part) {
    const auto heads = static_cast<std::size_t>(scene.shape.num_q_heads);
    const auto dim = static_cast<std::size_t>(value_dim());
    testing::Guarded<float> out(heads * dim), lse(heads);
    testing::Guarded<float> mass(std::vector<float>(2 * static_cast<std::size_t>(plan_heads()), 0));
    testing::Guarded<std::int64_t> kept(
        std::vector<std::int64_t>(2 * static_cast<std::size_t>(selection_heads()), -1));
    const std::int64_t tokens = tokens_.row;
    run({p, rows_part, tail_part,
         contiguous_view(out.data(), DType::kF32, {tokens, num_q_heads(), value_dim()}),
         contiguous_view(lse.data(), DType::kF32, {tokens, num_q_heads()}), mass.data(),
         kept.data()});
    EXPECT_TRUE(out.guards_intact() && lse.guards_intact() && mass.guards_intact());
    EXPECT_TRUE(kept.guards_intact() && heads_.guards_intact() && outputs_.guards_intact());
    Result result;
    for (int head = 0; head < scene.shape.num_q_heads; ++head) {
      const float* from = out.data() + output_of(head) * dim;
      result.out.insert(result.out.end(), from, from + dim);
      result.lse.push_back(lse[output_of(head)]);
      result.tail_mass.push_back(mass[static_cast<std::size_t>(kRow * plan_heads() + head)]);
    }
    for (int head = 0; head < selection_heads(); ++head) {
      result.kept.push_back(kept[static_cast<std::size_t>(kRow * selection_heads() + head)]);
    }
    return result;
  }

  // ------------------------------------------------------------------------- the reference
  /// Logical rows in order: (live, row).
  std::vector<std::pair<bool, std::int64_t>> attended(int selection_head) {
    std::vector<std::pair<bool, std::int64_t>> rows;
    for (int i = 0; i < view().num_sinks; ++i) rows.emplace_back(true, i);
    if (view().everything || all_rows) {
      for (std::int64_t row = 0; row < scene.num_stored; ++row) rows.emplace_back(false, row);
    } else {
      for (const auto& c : scene.clusters[static_cast<std::size_t>(kv_head_of(selection_head))]) {
        for (int i = 0; i < taken(selection_head, c.id); ++i) {
          rows.emplace_back(false, c.first_row + i);
        }
      }
    }
    for (int i = 0; i < view().num_pending; ++i) rows.emplace_back(true, view().first_pending + i);
    return rows;
  }
  std::vector<reference::Term> row_terms(int q_head, std::size_t first = 0,
                                         std::size_t count = SIZE_MAX) {
    std::vector<reference::Term> terms;
    const Vec query = scene.query_of(q_head);
    const int kv_head = q_head / scene.group();
    auto rows = attended(selection_head(q_head));
    const auto later = static_cast<std::size_t>(tokens_.row - 1 - token_of(q_head));
    rows.resize(rows.size() - std::min(later, rows.size()));
    for (std::size_t i = first; i < rows.size() && i - first < count; ++i) {
      auto& store = rows[i].first ? scene.live : scene.stored;
      const double logit =
          double{scale} * reference::dot(query, store.key(kv_head, rows[i].second));
      terms.push_back({reference::soft_capped(logit, double{softcap}), 1.0,
                       store.value(kv_head, rows[i].second)});
    }
    return terms;
  }
  /// Whether a cluster's own value mean stands for it, for any head of the selection head.
  bool is_kept_for(int selection_head, int cluster) {
    for (int head = 0; head < scene.shape.num_q_heads; ++head) {
      if (this->selection_head(head) != selection_head) continue;
      const double own =
          sizes_[static_cast<std::size_t>(head)].at(cluster) * std::exp2(t_of(head, cluster));
      if (own >= double{kTailShare} * mass_[static_cast<std::size_t>(head)]) return true;
    }
    return false;
  }
  std::vector<reference::Term> tail_terms(int q_head) {
    std::vector<reference::Term> terms;
    const int kv_head = q_head / scene.group();
    const float* sum = scene.index.view().record_value_sum(kv_head, scene.segments.back().record);
    Vec mean_of_all;
    for (int d = 0; d < value_dim(); ++d) {
      mean_of_all.push_back(double{sum[d]} / static_cast<double>(scene.num_stored));
    }
    for (const auto& c : clusters_of(q_head)) {
      const int left = c.size - taken(selection_head(q_head), c.id);
      if (left == 0) continue;
      const bool kept = is_kept_for(selection_head(q_head), c.id);
      terms.push_back(
          {t_of(q_head, c.id) * std::log(2.0), static_cast<double>(left),
           kept ? scene.index.value_mean(kv_head, scene.block_of(c.id), c.id % kBlockClusters)
                : mean_of_all});
    }
    return terms;
  }
  std::int64_t kept_count(int selection_head) {
    std::int64_t count = 0;
    for (const auto& c : scene.clusters[static_cast<std::size_t>(kv_head_of(selection_head))]) {
      count += c.size > taken(selection_head, c.id) && is_kept_for(selection_head, c.id);
    }
    return count;
  }
  /// One head of a result against terms.
  void expect(const Result& got, int q_head, const std::vector<reference::Term>& terms,
              double tolerance = 2e-5) const {
    const int dim = value_dim();
    const reference::State want = reference::softmax(terms, dim);
    const std::span out(got.out.data() + q_head * dim, static_cast<std::size_t>(dim));
    // fp32 logits of up to 256 products and a few hundred terms.
    EXPECT_LT(testing::max_error(out, want.out), tolerance) << "head " << q_head;
    EXPECT_LT(testing::relative_error(got.lse[static_cast<std::size_t>(q_head)], want.lse), 1e-5);
  }

  [[nodiscard]] int taken(int selection_head, int cluster) const {
    const auto& list = choice[static_cast<std::size_t>(selection_head)];
    const auto found = list.find(cluster);
    return found == list.end() ? 0 : found->second;
  }
  const std::vector<Scene::Cluster>& clusters_of(int q_head) const {
    return scene.clusters[static_cast<std::size_t>(q_head / scene.group())];
  }
  double t_of(int q_head, int cluster) const {
    return t_.at(static_cast<std::size_t>(q_head)).at(cluster);
  }

  Scene scene;
  std::vector<std::map<int, int>> choice;  ///< [selection head]: cluster id -> rows
  Tail tail = Tail::kNone;
  bool all_rows = false;
  SlotView slots;
  float scale = 0.1F;
  float softcap = 0;

 private:
  [[nodiscard]] int capacity() const { return static_cast<int>(scene.num_stored) + 2; }
  SelectionLists lists() {
    return {selection_heads(),    capacity(),       cluster_ids_.data(), counts_.data(),
            num_clusters_.data(), num_rows_.data(), row_ids_.data()};
  }
  void clear_lists() {
    const auto heads = 2 * static_cast<std::size_t>(selection_heads());
    const auto room = heads * static_cast<std::size_t>(capacity());
    cluster_ids_ = testing::Guarded<std::int32_t>(std::vector<std::int32_t>(room, -1));
    counts_ = testing::Guarded<std::int32_t>(room);
    row_ids_ = testing::Guarded<std::uint32_t>(room);
    num_clusters_ = num_rows_ = testing::Guarded<std::int32_t>(std::vector<std::int32_t>(heads, 0));
  }
  void write_list(int head) {
    const SelectionLists to = lists();
    int count = 0;
    int rows = 0;
    std::fill_n(to.clusters_of(kRow, head), capacity(), -1);
    for (const auto& c : scene.clusters[static_cast<std::size_t>(kv_head_of(head))]) {
      if (taken(head, c.id) == 0) continue;
      to.clusters_of(kRow, head)[count] = c.id;
      to.counts_of(kRow, head)[count++] = taken(head, c.id);
      for (int i = 0; i < taken(head, c.id); ++i) {
        to.rows_of(kRow, head)[rows++] = scene.stored.row_of(c.first_row + i);
      }
    }
    to.num_clusters[to.list(kRow, head)] = count;
    to.num_rows[to.list(kRow, head)] = rows;
  }
  void write_scores() {
    for (std::size_t i = 0; i < e_.size(); ++i) e_[i] = 0.0F;
    for (std::size_t i = 0; i < sums_.size(); ++i) {
      sums_[i] = {-std::numeric_limits<float>::infinity(), 0.0F, 0.0F};
    }
    t_.resize(static_cast<std::size_t>(scene.shape.num_q_heads));
    sizes_.resize(t_.size());
    mass_.resize(t_.size());
    for (int head = 0; head < scene.shape.num_q_heads; ++head) write_head(head);
    scores_[kRow] = {e_.data(), nullptr, sums_.data()};
  }
  void write_head(int q_head) {
    auto& t = t_[static_cast<std::size_t>(q_head)];
    std::map<int, double> max;
    for (const auto& c : clusters_of(q_head)) {
      t[c.id] = 2.0 * double{scene.random.normal()};
      sizes_[static_cast<std::size_t>(q_head)][c.id] = c.size;
      mass_[static_cast<std::size_t>(q_head)] += c.size * std::exp2(t[c.id]);
      auto& block = max.try_emplace(c.id / kBlockClusters, t[c.id]).first->second;
      block = std::max(block, t[c.id]);
    }
    const int kv_head = q_head / scene.group();
    HeadTotals total{-std::numeric_limits<float>::infinity(), 0, 0};
    for (const auto& [block, m] : max) total.max = std::max(total.max, static_cast<float>(m));
    double mass = 0;
    for (const auto& c : clusters_of(q_head)) {
      const int block = c.id / kBlockClusters;
      const double e = std::exp2(t[c.id] - max[block]);
      const std::size_t at_block =
          at(kv_head, static_cast<int>(scene.blocks.size()), block, q_head);
      e_[at_block * kBlockClusters + static_cast<std::size_t>(c.id % kBlockClusters)] =
          static_cast<float>(e);
      BlockSums& sums = sums_[at_block];
      sums.max = static_cast<float>(max[block]);
      sums.sum += static_cast<float>(e);
      sums.mass_sum += static_cast<float>(c.size * e);
      sums.max_mass = std::max(sums.max_mass, static_cast<float>(c.size) * static_cast<float>(e));
      mass += c.size * std::exp2(t[c.id] - double{total.max});
    }
    total.mass = static_cast<float>(mass);
    totals_[static_cast<std::size_t>(kRow * plan_heads() + q_head)] = total;
  }
  [[nodiscard]] std::size_t at(int kv_head, int plane, int i, int q_head) const {
    return static_cast<std::size_t>((kv_head * plane + i) * scene.group() + q_head % scene.group());
  }

  HeadGrouping grouping_;
  QueryTokens tokens_;
  std::vector<std::map<int, double>> t_;   ///< [q_head]: cluster id -> t
  std::vector<std::map<int, int>> sizes_;  ///< [q_head]: cluster id -> rows
  Vec mass_;                               ///< [q_head]: of all clusters, sum of size 2^t
  SequenceView views_[2] = {};
  RowScores scores_[2] = {};
  testing::Guarded<float> e_;
  testing::Guarded<BlockSums> sums_;
  testing::Guarded<HeadTotals> totals_;
  testing::Guarded<PartialHead> heads_;
  testing::Guarded<float> outputs_;
  testing::Guarded<std::int32_t> cluster_ids_, counts_, num_clusters_, num_rows_;
  testing::Guarded<std::uint32_t> row_ids_;
};

inline testing::SceneShape shape_of(const OpCase& op, Heads heads,
                                    std::vector<testing::SegmentShape> segments,
                                    IndexDType index_dtype = IndexDType::kF32) {
  testing::SceneShape shape;
  shape.op = op;
  shape.index_dtype = index_dtype;
  shape.num_q_heads = heads.q;
  shape.num_kv_heads = heads.kv;
  shape.segments = std::move(segments);
  return shape;
}

}  // namespace clusterkv::attend
