// SPDX-License-Identifier: Apache-2.0
//
// What a cache or selector is made from. Defaults are the standard preset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "clusterkv/types.hpp"

namespace clusterkv {
inline namespace v0 {

/// How K-means compares a key k with a centroid m. Cosine is the paper's choice.
enum class Metric : std::uint8_t {
  kCosine,        ///< k.m / |m|
  kL2,            ///< k.m - |m|^2 / 2, the nearest centroid
  kInnerProduct,  ///< k.m
};

/// How centroids and value means are stored.
enum class IndexDType : std::uint8_t {
  kInt8,  ///< one float scale a row; scores are integer sums, the same bits on every backend
  kBF16,
  kF32,
};

/// Who chooses clusters together.
enum class HeadGrouping : std::uint8_t {
  kShared,        ///< the query heads of a KV head vote: one choice per KV head
  kPerQueryHead,  ///< each query head for itself (the paper); G times the rows
};

/// What stands for the clustered rows that were not selected.
enum class Tail : std::uint8_t {
  kNone,          ///< nothing (the paper)
  kMean,          ///< cluster means
  kSecondMoment,  ///< cluster means, their mass corrected by the spread of the cluster
};

/// Where the rows of clustered tokens lie, in layers that choose. Those of dense layers, which read all of
/// theirs in every step, lie beside the index.
enum class Residency : std::uint8_t {
  kAuto,    ///< CPU: kDevice, or kHost with a cold_path; CUDA: kHost
  kDevice,  ///< beside the index, read in place
  kHost,    ///< in the host store; selected rows are recalled into a bounded pool of slots
  kHybrid,  ///< as kDevice while device_bytes has room, those of later pages as kHost
};

/// How long recalled rows stay in the slot pool.
enum class Retention : std::uint8_t {
  kLru,          ///< until their slot is needed (second chance)
  kRetainSteps,  ///< while selected in one of the last `retain_steps` steps (the paper)
};

/// What becomes of selected rows that are not in the slot pool.
enum class Misses : std::uint8_t {
  kCopyMisses,      ///< they are copied, however many there are
  kEstimateMisses,  ///< `transfer_tokens` are copied; clusters that want more go to the tail
};

/// The attention of one model, as held by this process. No defaults: the engine knows them.
struct ModelShape {
  int num_layers = 0;             ///< layers held here; > 0
  int num_q_heads = 0;            ///< query heads held here; a multiple of num_kv_heads
  int num_kv_heads = 0;           ///< KV heads held here; > 0
  int head_dim = 0;               ///< 64, 80, 96, 128 or 256
  int value_dim = 0;              ///< of values and outputs; as head_dim. 0: head_dim
  DType kv_dtype = DType::kBF16;  ///< how rows are stored: kBF16, kF16 or kF32
  float softmax_scale = 0;        ///< 0: 1 / sqrt(head_dim)
  /// c of logits c tanh(softmax_scale q.k / c), as Gemma 2 has them; 1e-3 .. 1e6. 0: none.
  float logit_softcap = 0;
  /// Model layer ids held here, ascending: pipeline ranks, models with sliding-window layers.
  /// Empty: 0 .. num_layers - 1. Calls take positions in this list, not ids.
  std::vector<int> layers;
};

struct ClusterConfig {
  int tokens_per_cluster = 8;   ///< tokens a cluster has on average; > 0
  int segment_tokens = 2048;    ///< tokens clustered together; 0: the whole prompt at once
  int window_tokens = 320;      ///< decoded tokens clustered together; > 0
  int min_window_clusters = 4;  ///< clusters of a decode window, at least; > 0
  int kmeans_iterations = 4;    ///< > 0
  int sink_tokens = 16;         ///< first tokens, never clustered and always attended; >= 0
  std::uint64_t seed = 0;       ///< 0: start from evenly spaced tokens; else from random ones
  Metric metric = Metric::kCosine;
  IndexDType index_dtype = IndexDType::kInt8;
};

struct SelectConfig {
  int budget_tokens = 512;  ///< clustered rows attended a step; sinks and pending are extra; > 0
  HeadGrouping grouping = HeadGrouping::kShared;
  Tail tail = Tail::kSecondMoment;
  float tail_share = 1e-4F;      ///< a cluster with less of the mass gives it to the mean of all
  int dense_layers = 2;          ///< model layer ids below this attend to everything; >= 0
  float dense_threshold = 1.5F;  ///< attend to everything up to this times the budget; >= 0
};

struct StoreConfig {
  Residency residency = Residency::kAuto;
  /// Bytes of the slot pool of layers that choose; 0: 4 x budget rows a sequence. When it is full, quads of
  /// earlier steps make room, as `retention` says; what the running step needs beyond that is read in place. With
  /// kHybrid, > 0: of the slot pool, at most as above, and of rows that stay on the device, in what it leaves; or
  /// of all rows if they fit, without slots. Pages of 256 rows take the device's places first, and stay where
  /// they are. Rows of dense layers are not counted.
  std::size_t device_bytes = 0;
  /// The most memory that the host store may take; 0: as max_tokens needs. A cold store's file is not counted.
  /// A step or load() that wants more is refused with CapacityError: its rows are nowhere else, so that only
  /// the caller can say whose may go.
  std::size_t host_bytes = 0;
  /// A directory on a local disk: the rows of the host store lie there, in a file without a name, so that
  /// they may exceed memory. Selected rows are read from it into the slot pool. The file is as large as
  /// max_tokens needs from the beginning, and is gone with the cache. CPU on Linux 5.14 or later. Empty: rows
  /// lie in memory.
  std::string cold_path = {};
  /// Sinks and pending tokens of all sequences together, at most; they lie beside the index. 0:
  /// max_tokens, so that a prompt may come in one piece. Less is enough where prompts come in chunks: a
  /// sequence holds sinks, up to segment_tokens, and the chunk.
  std::int64_t live_tokens = 0;
  Retention retention = Retention::kLru;
  int retain_steps = 1;  ///< 1 .. 64
  /// kEstimateMisses bounds what a step waits for. It takes kHost or kHybrid, and a tail, and is the one
  /// setting with which an answer depends on what was attended before.
  Misses misses = Misses::kCopyMisses;
  /// With kEstimateMisses: rows that a step may bring from the host store, in whole quads (4 rows), for each
  /// sequence, layer and KV head; 4 .. 2^24. Sequences and layers that attend to everything have no tail and
  /// copy what they need. Else 0.
  int transfer_tokens = 0;
};

struct CacheConfig {
  ModelShape model;
  ClusterConfig cluster;
  SelectConfig select;
  StoreConfig store;
  int max_sequences = 0;  ///< live at once; required
  /// Of all live sequences together; required. Tokens of a segment that forks share count once.
  std::int64_t max_tokens = 0;
  bool check_finite = false;  ///< refuse keys and values that are NaN or infinite

  /// The defaults above. On a recorded layer a third of the error of paper() at the same budget, and
  /// less than it at half the budget (docs/performance.md).
  static CacheConfig standard(const ModelShape& model);

  /// arXiv 2412.03213: the whole prompt at once, 80 tokens a cluster, budget 1024, each query head
  /// for itself, no tail, rows kept one step.
  static CacheConfig paper(const ModelShape& model);
};

}  // namespace v0
}  // namespace clusterkv
