// SPDX-License-Identifier: Apache-2.0
//
// A cache in the middle of decoding, and beside it the keys and values as an engine has them. head_dim
// 128, 8 KV heads, bf16 rows, standard preset, every layer sparse. Attends go round over layers and
// queries, so that no cache holds what they read: a gigabyte of keys and values at least.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "clusterkv/clusterkv.hpp"

namespace clusterkv::bench {

struct FilledShape {
  int context = 32768;  ///< of each sequence
  int batch = 1;
  int group = 4;  ///< query heads of a KV head
  int tokens_per_cluster = 8;
  float dense_threshold = 0;

  bool operator==(const FilledShape&) const = default;
};

/// How the engine's rows lie: [token, kv_head, head_dim], or [kv_head, token, head_dim].
enum class Layout : std::uint8_t { kNhd, kHnd };

/// bf16 rows in the library's own memory, for its huge pages.
class Rows {
 public:
  explicit Rows(std::size_t elements);
  ~Rows();
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
  [[nodiscard]] std::uint16_t* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return elements_; }

 private:
  std::uint16_t* data_;
  std::size_t elements_;
};

class FilledCache {
 public:
  static constexpr int kKvHeads = 8, kHeadDim = 128, kMaxBudget = 4096;
  static constexpr std::int64_t kTokenBytes = std::int64_t{2} * 2 * kKvHeads * kHeadDim;

  explicit FilledCache(const FilledShape& shape);

  /// A decode step: one more token of each sequence, in every layer.
  void step(int budget);
  /// Attention of the next layer in turn.
  void attend(Executor& executor);
  /// Full attention over the keys and values of the next layer in turn, where the engine has them.
  void dense(Executor& executor, Layout layout = Layout::kHnd);

  [[nodiscard]] const ClusterKVCache& cache() const { return cache_; }
  [[nodiscard]] SequenceId sequence(int i) const { return rows_[static_cast<std::size_t>(i)].id; }

  /// Of one attend(), the mean over those since step().
  struct Work {
    double index_bytes, value_mean_bytes, row_bytes;
    double run_bytes;         ///< of chosen rows that lie side by side
    double clusters, values;  ///< scored, and whose value means were read; of one KV head
  };
  [[nodiscard]] Work work();

 private:
  void make_rows();
  void make_queries();
  void fill();
  [[nodiscard]] static TensorView tokens(const Rows& rows, std::int64_t first, std::int64_t count);
  [[nodiscard]] TensorView query() const;
  [[nodiscard]] AttentionOut out() const;

  static constexpr int kQueries = 7;
  FilledShape shape_;
  int layers_;
  std::int64_t layer_tokens_;  ///< tokens of all sequences
  int num_q_heads_;
  Rows keys_, values_;                ///< [layer, sequence, token, kv_head, head_dim]
  std::vector<float> queries_, out_;  ///< [kQueries, sequence, q_head, head_dim]
  ClusterKVCache cache_;
  std::vector<std::byte> scratch_;
  Workspace workspace_;
  std::vector<StepRow> rows_;
  DecodePlan plan_;
  int turn_ = 0;
};

/// Made once; the last one is kept.
FilledCache& filled_cache(const FilledShape& shape);

}  // namespace clusterkv::bench
