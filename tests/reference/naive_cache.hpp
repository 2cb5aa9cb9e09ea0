// SPDX-License-Identifier: Apache-2.0
//
// The whole algorithm in fp64, as plainly as possible. Shares with the library only what is
// specification: the number of clusters, the seeded start, and how stored values are rounded.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "clusterkv/config.hpp"
#include "clusterkv/step.hpp"

namespace clusterkv::testing {

using Vec = std::vector<double>;

struct NaiveCluster {
  int id;                   ///< 64 * block + cluster in block
  std::vector<int> tokens;  ///< positions, in stored order
  Vec mean_key, mean_value;
  double spread = 0;
};

struct NaiveSegment {
  std::vector<NaiveCluster> clusters;
  Vec profile;
  /// Smallest relative gap between the best and second best cluster of any assignment: below 1e-5
  /// the library's fp32 may decide otherwise.
  double smallest_gap = 1;
};

struct NaiveChoice {
  std::vector<std::pair<int, int>> clusters;  ///< (id, rows), ascending
  /// Relative difference between the worst key that is in and the best that is out.
  double gap = 1;
};

struct NaiveOutput {
  Vec out;
  double lse = 0;
};

class NaiveCache {
 public:
  explicit NaiveCache(const CacheConfig& config);

  struct Row {
    Vec key, value;
  };
  /// One step of one sequence: rows[layer][token][kv_head].
  void step(const StepRow& row, const std::vector<std::vector<std::vector<Row>>>& rows);
  void remove(SequenceId id) { sequences_.erase(id); }

  /// What the library should choose. `head`: a KV head, or a query head per query head.
  [[nodiscard]] NaiveChoice choose(SequenceId id, int layer, int head,
                                   const std::vector<Vec>& queries, int budget) const;
  /// Attention of one query head over sinks, the choice and pending, with the tail.
  [[nodiscard]] NaiveOutput attend(SequenceId id, int layer, int q_head,
                                   const std::vector<Vec>& group, const NaiveChoice& choice,
                                   int budget) const;
  /// Positions a choice stands for, in order.
  [[nodiscard]] std::vector<int> positions(SequenceId id, int layer, int kv_head,
                                           const NaiveChoice& choice) const;
  [[nodiscard]] int length(SequenceId id) const;
  /// Whether some assignment was too close for fp32.
  [[nodiscard]] bool is_doubtful(SequenceId id, int layer, int kv_head) const;
  [[nodiscard]] const Row& row(SequenceId id, int layer, int token, int kv_head) const;

 private:
  struct Sequence {
    int length = 0;
    int visible_end = 0;                       ///< position after the last visible segment
    std::vector<std::pair<int, int>> sealing;  ///< [first, last), visible from the next step on
    std::vector<int> sealing_clusters;         ///< of each, before empty ones are dropped
    std::vector<int> cluster_counts;           ///< the same of visible segments
    std::vector<std::pair<int, int>> ranges;   ///< of visible segments
    std::vector<std::vector<std::vector<Row>>> rows;               ///< [layer][token][kv_head]
    std::vector<std::vector<std::vector<NaiveSegment>>> segments;  ///< [layer][kv_head][segment]
  };
  struct Score {
    const NaiveCluster* cluster;
    double z, t;
  };

  [[nodiscard]] bool is_dense_layer(int layer) const;
  [[nodiscard]] bool is_everything(const Sequence& s, int layer, int budget) const;
  [[nodiscard]] int sinks(const Sequence& s) const;
  void seal(Sequence& s);
  [[nodiscard]] NaiveSegment cluster(const Sequence& s, int layer, int kv_head, int first, int last,
                                     int clusters, int first_block) const;
  [[nodiscard]] std::vector<int> kmeans(const std::vector<Vec>& keys, std::vector<Vec> centroids,
                                        double& smallest_gap) const;
  [[nodiscard]] Vec stored(const Vec& x) const;
  [[nodiscard]] std::vector<Score> scores(const Sequence& s, int layer, int kv_head,
                                          const Vec& query) const;

  CacheConfig config_;
  double scale_;
  std::map<SequenceId, Sequence> sequences_;
};

}  // namespace clusterkv::testing
