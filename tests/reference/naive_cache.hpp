// SPDX-License-Identifier: Apache-2.0
//
// The whole cache in fp64 from the reference ops: lengths, sealing, choice, attention.
//
// It is told what the library chose and says whether that was right, so that an fp32 near-tie does
// not make everything after it incomparable. Where rounding may fall either way it says how much
// that can move a result: its `slack`.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <vector>

#include "clusterkv/config.hpp"
#include "clusterkv/step.hpp"
#include "tests/reference/numeric.hpp"

namespace clusterkv::testing {

using reference::Vec;

/// The library did something that the reference rules out.
class Mismatch : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A mean as the index stores it.
struct StoredMean {
  Vec value;
  /// What each element may be off by: a step of the format where a mean lies so near the middle of
  /// two steps that fp32 may round it the other way; else 0.
  Vec slack;
};

struct NaiveCluster {
  std::vector<int> tokens;  ///< positions, in stored order
  StoredMean key, value;
  double spread = 0;
};

struct NaiveSegment {
  std::vector<NaiveCluster> clusters;
  Vec profile, value_sum;
  double smallest_gap = 1;  ///< of an assignment, relative: see reference::Assignment
};

struct NaiveOutput {
  Vec out;
  double lse = 0;
  double out_slack = 0;  ///< |o| may be off by this
  double lse_slack = 0;
};

class NaiveCache {
 public:
  /// \param rounds  whether queries that meet rows, and centroids that meet keys, are rounded to the rows'
  ///                dtype, as matrix units want them
  explicit NaiveCache(const CacheConfig& config, bool rounds = false);

  struct Row {
    Vec key, value;
  };
  /// One step of one sequence: rows[layer][token][kv_head].
  void step(const StepRow& row, const std::vector<std::vector<std::vector<Row>>>& rows);
  void remove(SequenceId id) { sequences_.erase(id); }
  void fork(SequenceId parent, SequenceId child, int num_tokens);
  void truncate(SequenceId id, int num_tokens);
  /// As a fork of the whole, that shares nothing.
  void restore(SequenceId saved, SequenceId loaded);
  /// A step began, and was cut off again whole.
  void cancel(SequenceId id);

  /// Tokens that max_tokens bounds: those of a segment count once, whoever has it.
  [[nodiscard]] std::int64_t held_tokens() const;

  [[nodiscard]] int length(SequenceId id) const { return sequences_.at(id).length; }
  [[nodiscard]] const Row& row(SequenceId id, int layer, int token, int kv_head) const;
  /// Tokens that a choice may take from in a layer; 0 if it is dense.
  [[nodiscard]] int clustered(SequenceId id, int layer) const;
  /// Whether the rule makes a step attend to everything.
  [[nodiscard]] bool attends_to_all(SequenceId id, int layer, int budget) const;
  /// Whether some assignment was too close for fp32, so that clusters may differ.
  [[nodiscard]] bool is_doubtful(SequenceId id, int layer, int kv_head) const;

  /// Rows taken of each cluster, from the positions of a list and the row count of each of its
  /// entries. \throws Mismatch unless they are sinks, first rows of clusters in order, pending.
  [[nodiscard]] std::vector<int> taken(SequenceId id, int layer, int kv_head,
                                       const std::vector<std::int32_t>& positions,
                                       const std::vector<std::int32_t>& row_counts) const;

  /// Whether the prefix rule allows the choice: exactly `budget` rows or all, and no cluster left
  /// out that ranks above one taken. `judges`: queries of the heads that choose together.
  /// \return whether it is the reference's own choice too; if not, ranks were as good as equal
  /// \throws Mismatch
  bool check_choice(SequenceId id, int layer, int kv_head, const std::vector<Vec>& judges,
                    const std::vector<int>& taken, int budget) const;

  /// Attention of `query` over sinks, taken rows and pending, with the tail.
  /// \param judges  queries of the heads that decide together which value means are read
  [[nodiscard]] NaiveOutput attend(SequenceId id, int layer, int kv_head, const Vec& query,
                                   const std::vector<Vec>& judges,
                                   const std::vector<int>& taken) const;

 private:
  struct Sealing {
    int first, last, num_clusters;
    int number;  ///< no other segment has it, but a fork's copy
  };
  struct Sequence {
    int length = 0;
    int step_start = 0;                               ///< length before the newest step
    int visible_end = 0;                              ///< position after the last visible segment
    std::vector<Sealing> visible;                     ///< of `segments`
    std::vector<Sealing> sealing;                     ///< visible from the next step on
    std::vector<std::vector<std::vector<Row>>> rows;  ///< [layer][token][kv_head]
    std::vector<std::vector<std::vector<NaiveSegment>>> segments;  ///< [layer][kv_head]
  };
  /// One cluster for one query, in natural logs.
  struct Score {
    double z, t;
    double slack;  ///< of either
  };
  struct Member {
    const NaiveSegment* segment;
    const NaiveCluster* cluster;
  };
  /// Whether a value mean is read; doubtful: fp32 may see it otherwise.
  enum class Kept : std::uint8_t { kNo, kYes, kDoubtful };

  [[nodiscard]] int model_layer(int layer) const;
  [[nodiscard]] bool is_dense_layer(int layer) const;
  [[nodiscard]] int sinks(const Sequence& s) const;
  void make_visible(Sequence& s) const;
  void decide_sealing(Sequence& s, const StepRow& row);
  [[nodiscard]] NaiveSegment cluster(const Sequence& s, int layer, int kv_head,
                                     const Sealing& sealing) const;
  [[nodiscard]] StoredMean stored(const Vec& mean) const;
  [[nodiscard]] std::vector<Member> members(const Sequence& s, int layer, int kv_head) const;
  [[nodiscard]] std::vector<Score> scores(const std::vector<Member>& members,
                                          const Vec& query) const;
  /// How far a sum of exponentials may be off, relatively; `total`: its log.
  static double slack_of_sum(const std::vector<Score>& scores, const Vec& logs, double total);
  [[nodiscard]] std::vector<Kept> kept(const std::vector<Member>& members,
                                       const std::vector<Vec>& judges) const;

  CacheConfig config_;
  DType operands_;  ///< kF32: not rounded
  double scale_;
  std::size_t value_dim_;
  std::map<SequenceId, Sequence> sequences_;
  int num_segments_ = 0;  ///< ever
};

}  // namespace clusterkv::testing
