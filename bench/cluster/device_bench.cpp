// SPDX-License-Identifier: Apache-2.0
//
// K-means on a device, head_dim 128, bf16 keys, 8 KV heads, times per iteration. Axes: segments of 2048
// tokens; clusters of prompts that are one segment. The lanes that add up a cluster's keys are a
// constant of the build (kernels/cluster/cuda/tuning.hpp), in the name of each bench.
#include <fmt/format.h>

#include <string>

#include "bench/support/device.hpp"
#include "kernels/cluster/cuda/cluster_ops.hpp"
#include "kernels/cluster/cuda/tuning.hpp"

namespace clusterkv::bench {
namespace {

constexpr int kHeads = 8, kDim = 128, kIterations = 4;

/// Jobs over `segments` runs of `tokens` keys of each KV head.
class ClusterScene {
 public:
  ClusterScene(int segments, int tokens, int clusters)
      : keys_(rows(segments * tokens) * 2 * kDim),
        pages_(page_numbers(segments * tokens)),
        labels_(rows(segments * tokens)),
        order_(labels_.size()),
        offset_(static_cast<std::size_t>(kHeads * segments * (clusters + 1))),
        cursor_(offset_.size()),
        centroids_(static_cast<std::size_t>(kHeads * segments) * padded(clusters) * kDim),
        bias_(static_cast<std::size_t>(kHeads * segments) * padded(clusters)) {
    keys_.fill(random_bf16(keys_.size()));
    RowStore store;
    store.base = reinterpret_cast<std::byte*>(keys_.data());
    store.head_stride = keys_.size() / kHeads * sizeof(std::uint16_t);
    store.row_bytes = 2 * kDim * sizeof(std::uint16_t);
    store.dtype = DType::kBF16;
    store.head_dim = store.value_dim = kDim;
    for (int job = 0; job < kHeads * segments; ++job) {
      const auto j = static_cast<std::size_t>(job);
      const std::size_t first = j * static_cast<std::size_t>(tokens);
      on_device::LargeClusterJob large{};
      large.job = {
          {{store, pages_.data(), std::int64_t{job / kHeads} * tokens, tokens, job % kHeads},
           clusters,
           Metric::kCosine,
           kIterations,
           false,
           0},
          labels_.data() + first,
          order_.data() + first,
          offset_.data() + j * static_cast<std::size_t>(clusters + 1)};
      large.centroids = centroids_.data() + j * padded(clusters) * kDim;
      large.bias = bias_.data() + j * padded(clusters);
      large.cursor = cursor_.data() + j * static_cast<std::size_t>(clusters);
      jobs_.push_back(large.job);
      large_jobs_.push_back(large);
    }
    operations_ = 2.0 * kHeads * segments * tokens * clusters * kDim * kIterations;
  }

  void bench(benchmark::State& state, bool is_large) const {
    const Buffer<on_device::ClusterJob> jobs(jobs_);
    const Buffer<on_device::LargeClusterJob> large_jobs(large_jobs_);
    const auto count = static_cast<int>(jobs_.size());
    measure(state, {.operations = operations_, .layers = kIterations}, [&](void* stream) {
      if (is_large) {
        on_device::cluster_large_segments(large_jobs.data(), count, jobs_[0].params, stream);
      } else {
        on_device::cluster_segments(jobs.data(), count, jobs_[0].params, stream);
      }
    });
  }

 private:
  static std::size_t rows(int tokens) { return static_cast<std::size_t>(kHeads * tokens); }
  static std::size_t padded(int clusters) {
    return static_cast<std::size_t>(on_device::large_clusters(clusters));
  }
  static std::vector<std::uint32_t> page_numbers(int tokens) {
    std::vector<std::uint32_t> pages;
    for (int i = 0; i < tokens / kPageRows; ++i) pages.push_back(static_cast<std::uint32_t>(i));
    return pages;
  }

  Buffer<std::uint16_t> keys_;
  Buffer<std::uint32_t> pages_;
  Buffer<std::int32_t> labels_, order_, offset_, cursor_;
  Buffer<std::uint16_t> centroids_;
  Buffer<float> bias_;
  std::vector<on_device::ClusterJob> jobs_;
  std::vector<on_device::LargeClusterJob> large_jobs_;
  double operations_;
};

void segments(benchmark::State& state) {
  const auto count = static_cast<int>(state.range(0));
  ClusterScene(count, 2048, static_cast<int>(state.range(1))).bench(state, false);
}
void windows(benchmark::State& state) {
  const auto count = static_cast<int>(state.range(0));
  ClusterScene(count, 512, 40).bench(state, false);
}
void one_segment(benchmark::State& state) {
  const auto tokens = static_cast<int>(state.range(0));
  ClusterScene(1, tokens, static_cast<int>(state.range(1))).bench(state, true);
}

std::string with_lanes(const char* name) {
  return fmt::format("{}_{}_lanes", name, kUpdateLanes);
}

BENCHMARK(segments)
    ->Name(with_lanes("cluster/segments/cuda/by_count"))
    ->ArgNames({"segments", "clusters"})
    ->Args({1, 256})
    ->Args({16, 200})
    ->Args({16, 256})
    ->Args({64, 256})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(windows)
    ->Name(with_lanes("cluster/windows/cuda/by_count"))
    ->ArgNames({"windows"})
    ->Arg(1)
    ->Arg(30)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(one_segment)
    ->Name(with_lanes("cluster/one_segment/cuda/by_clusters"))
    ->ArgNames({"tokens", "clusters"})
    ->Args({4096, 200})
    ->Args({32768, 200})
    ->Args({32768, 400})
    ->Args({32768, 800})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace clusterkv::bench
