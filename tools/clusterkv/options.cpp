// SPDX-License-Identifier: Apache-2.0
#include "tools/clusterkv/options.hpp"

#include <map>

namespace clusterkv::tool {
namespace {

/// An option that takes one of some names.
template <class T>
void add_choice(CLI::App& command, const std::string& name, std::optional<T>& target,
                const std::map<std::string, T>& names, const std::string& help) {
  command
      .add_option_function<std::string>(
          name, [&target, names](const std::string& text) { target = names.at(text); }, help)
      ->check(CLI::IsMember(names));
}

}  // namespace

void add_trace_options(CLI::App& command, CommonOptions& o) {
  command.add_option("trace", o.trace, "safetensors file of recorded attention inputs")
      ->required()
      ->check(CLI::ExistingFile);
  command.add_option("--layers", o.replay.layers, "Layers of the trace, such as 9,29")
      ->delimiter(',');
  command.add_option("--threads", o.threads, "Threads; 0: as many as cores")
      ->check(CLI::NonNegativeNumber);
}

void add_cluster_options(CLI::App& command, CommonOptions& o) {
  ReplayOptions& r = o.replay;
  command.add_option("--tokens-per-cluster", r.tokens_per_cluster, "Mean size of a cluster");
  command.add_option("--segment-tokens", r.segment_tokens,
                     "Tokens clustered together; 0: the whole prompt");
  command.add_option("--iterations", r.iterations, "K-means iterations");
  add_choice<Metric>(
      command, "--metric", r.metric,
      {{"cosine", Metric::kCosine}, {"l2", Metric::kL2}, {"inner-product", Metric::kInnerProduct}},
      "K-means distance");
  command.add_option("--seed", r.seed, "Start of K-means; 0: evenly spaced tokens");
}

void add_replay_options(CLI::App& command, CommonOptions& o) {
  ReplayOptions& r = o.replay;
  command.add_option("--queries", r.queries, "First recorded queries to replay; 0: all")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command.add_option("--chunk", r.chunk, "Tokens of a prefill call; 0: the whole prompt")
      ->check(CLI::NonNegativeNumber);
  command
      .add_option_function<std::string>(
          "--backend",
          [&r](const std::string& name) {
            r.backend = name == "cuda" ? Backend::kCuda : Backend::kCpu;
          },
          "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  add_choice<Residency>(
      command, "--residency", r.residency,
      {{"device", Residency::kDevice}, {"host", Residency::kHost}, {"hybrid", Residency::kHybrid}},
      "Where clustered rows lie");
  command.add_option("--device-bytes", r.device_bytes,
                     "Bytes of slots; with hybrid, of slots and rows that stay");
  command
      .add_option_function<std::string>(
          "--retain",
          [&r](const std::string& text) { r.retain = text == "lru" ? 0 : std::stoi(text); },
          "lru, or steps 1 .. 64 that recalled rows stay")
      ->check(CLI::IsMember({"lru"}) | CLI::Range(1, 64));
  add_choice<Tail>(
      command, "--tail", r.tail,
      {{"none", Tail::kNone}, {"mean", Tail::kMean}, {"second-moment", Tail::kSecondMoment}},
      "What stands for rows not selected");
  add_choice<HeadGrouping>(
      command, "--grouping", r.grouping,
      {{"shared", HeadGrouping::kShared}, {"per-query-head", HeadGrouping::kPerQueryHead}},
      "Who chooses clusters together");
  add_choice<IndexDType>(
      command, "--index", r.index,
      {{"int8", IndexDType::kInt8}, {"bf16", IndexDType::kBF16}, {"f32", IndexDType::kF32}},
      "How centroids are stored");
  add_choice<DType>(command, "--rows", r.rows,
                    {{"f32", DType::kF32}, {"f16", DType::kF16}, {"bf16", DType::kBF16}},
                    "How rows are stored; default: as in the trace");
}

}  // namespace clusterkv::tool
