// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "clusterkv/selector.hpp"
#include "tools/clusterkv/commands.hpp"
#include "tools/clusterkv/metrics.hpp"
#include "tools/clusterkv/options.hpp"
#include "tools/clusterkv/progress.hpp"

namespace clusterkv::tool {
namespace {

void print_file(const Trace& trace) {
  for (const auto& [key, value] : trace.file.metadata) fmt::print("{}: {}\n", key, value);
  for (const auto& [name, tensor] : trace.file.tensors) {
    fmt::print("{:<20} [", name);
    for (int axis = 0; axis < tensor.rank; ++axis) {
      fmt::print("{}{}", axis > 0 ? ", " : "", tensor.shape[static_cast<std::size_t>(axis)]);
    }
    fmt::print("]\n");
  }
}

/// Sizes of all clusters of the prompt: what a selection with room for everything lists.
std::vector<double> cluster_sizes(const Trace& trace, const ReplayOptions& options,
                                  const TraceLayer& layer, Executor& executor) {
  ReplayOptions one = options;
  one.layers = {layer.id};
  const CacheConfig config = replay_config(trace, "standard", trace.num_tokens, one);
  ClusterSelector selector(config, {Backend::kCpu, &executor, nullptr});
  const PlanLimits limits{1, trace.query_start, 0};
  const MemoryNeeds needs = ClusterSelector::memory_needs(config, Backend::kCpu, limits);
  std::vector<std::byte> memory(needs.workspace_bytes + 64);
  void* aligned = memory.data();
  std::size_t room = memory.size();
  std::align(64, needs.workspace_bytes, aligned, room);

  StepRow row{.id = selector.add_sequence(),
              .num_new_tokens = trace.query_start,
              .num_query_tokens = 0,
              .phase = Phase::kPrefillLast};
  DecodePlan plan = selector.plan({&row, 1}, limits, {aligned, room, nullptr, 0});
  const int start = trace.query_start;
  selector.append(0, plan, slice(layer.key, 0, start), slice(layer.value, 0, start));
  row = {.id = row.id};
  selector.update(plan, {&row, 1});
  selector.append(0, plan, slice(layer.key, start, start + 1),
                  slice(layer.value, start, start + 1));
  const Selection all = selector.select(0, plan, slice(layer.query, 0, 1));
  std::vector<double> sizes;
  const auto* counts = static_cast<const std::int32_t*>(all.row_counts.data);
  const std::int64_t entries = all.row_counts.shape[1] * all.row_counts.shape[2];
  for (std::int64_t i = 0; i < entries; ++i) {
    if (counts[i] > 0) sizes.push_back(counts[i]);
  }
  return sizes;
}

void print_norms(const Trace& trace, const TraceLayer& layer) {
  std::vector<float> keys(static_cast<std::size_t>(trace.num_tokens) *
                          static_cast<std::size_t>(trace.num_kv_heads * trace.head_dim));
  widen(layer.key, keys);
  std::vector<double> norms;
  const auto dim = static_cast<std::size_t>(trace.head_dim);
  for (std::size_t row = 0; row < keys.size(); row += dim) {
    double sum = 0;
    for (std::size_t d = 0; d < dim; ++d) sum += double{keys[row + d]} * keys[row + d];
    norms.push_back(std::sqrt(sum));
  }
  fmt::print("layer {}: key norms mean {:.2f}, p5 {:.2f}, p95 {:.2f}\n", layer.id, mean(norms),
             percentile(norms, 0.05), percentile(norms, 0.95));
}

void run(const CommonOptions& options) {
  const Trace trace = read_trace(options.trace);
  const auto layers = chosen_layers(trace, options.replay.layers);
  const auto executor = make_thread_pool(options.threads);
  print_file(trace);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const TraceLayer& layer = *layers[i];
    print_norms(trace, layer);
    std::vector<double> sizes;
    {
      ProgressLine line(fmt::format("layer {}", layer.id));
      line.show(static_cast<double>(i) / static_cast<double>(layers.size()));
      sizes = cluster_sizes(trace, options.replay, layer, *executor);
    }
    fmt::print("layer {}: {} clusters, rows mean {:.1f}, p50 {:.0f}, p90 {:.0f}, max {:.0f}\n",
               layer.id, sizes.size(), mean(sizes), percentile(sizes, 0.5), percentile(sizes, 0.9),
               percentile(sizes, 1.0));
  }
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto options = std::make_shared<CommonOptions>();
  CLI::App* command = app.add_subcommand("inspect", "What is in a trace, and how it clusters");
  add_trace_options(*command, *options);
  add_cluster_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace clusterkv::tool
