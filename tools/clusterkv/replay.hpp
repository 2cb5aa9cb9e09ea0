// SPDX-License-Identifier: Apache-2.0
//
// Runs a trace through a cache, token by token, beside full attention over the same rows.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "clusterkv/config.hpp"
#include "clusterkv/executor.hpp"
#include "tools/clusterkv/progress.hpp"
#include "tools/clusterkv/trace.hpp"

namespace clusterkv::tool {

/// What a command line may set on top of a preset.
struct ReplayOptions {
  int queries = 256;  ///< first recorded queries; 0: all
  int chunk = 0;      ///< tokens of a prefill call; 0: the whole prompt
  Backend backend = Backend::kCpu;
  std::vector<int> layers;    ///< model ids; empty: all of the trace
  std::optional<DType> rows;  ///< empty: the trace's
  std::optional<Residency> residency;
  std::optional<std::size_t> device_bytes;
  std::optional<int> retain;  ///< steps; 0: LRU
  std::optional<Tail> tail;
  std::optional<HeadGrouping> grouping;
  std::optional<int> tokens_per_cluster;
  std::optional<int> segment_tokens;
  std::optional<int> iterations;
  std::optional<Metric> metric;
  std::optional<IndexDType> index;
  std::optional<std::uint64_t> seed;
};

/// One line of the result. Steps are decode steps; heads are query heads where errors are meant and
/// selection heads where choices are.
struct Metrics {
  std::string preset;
  int layer;
  int budget;
  double error_mean;  ///< relative L2 of the output, over steps and heads
  double error_p95;
  double mass_recall;   ///< full softmax weight of what was attended
  double token_recall;  ///< of the exact top `budget` prompt tokens
  double hit_rate_r1;
  double hit_rate_r2;
  double hit_rate_r3;
  double attended_tokens;
  double bytes_touched;  ///< a step
  double step_us;        ///< median
  double dense_us;       ///< median
};

/// Hit rates for several R at once, for the retain sweep.
struct RetainPoint {
  int steps;
  double hit_rate;
  double link_bytes;  ///< a step, if exactly the missed clusters crossed the link
};

struct ReplayResult {
  std::vector<Metrics> layers;
  double prefill_ms;  ///< append of the prompt, all layers: storing and clustering
  std::int64_t clusters;
  std::vector<std::vector<RetainPoint>> retain;  ///< [layer]
};

/// The cache config of a replay: sparse everywhere.
CacheConfig replay_config(const Trace& trace, const std::string& preset, int budget,
                          const ReplayOptions& options);

/// \throws ConfigError  if options and trace do not fit
ReplayResult replay(const Trace& trace, const std::string& preset, int budget,
                    const ReplayOptions& options, Executor& executor, const Progress& progress);

}  // namespace clusterkv::tool
