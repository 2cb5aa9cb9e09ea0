// SPDX-License-Identifier: Apache-2.0
//
// K-means over a prompt of 32k tokens of one KV head, head_dim 128, on one thread: segments of 2048 tokens,
// 256 clusters and 4 iterations each. Beside it the same by FAISS, where the build has it
// (-DCLUSTERKV_BENCH_FAISS=ON): spherical, all points, keys given in f32.
#include <benchmark/benchmark.h>

#include <numeric>
#include <random>
#include <vector>

#include "bench/support/limits.hpp"
#include "kernels/cluster/cluster.hpp"
#include "kernels/common/numeric.hpp"

#ifdef CLUSTERKV_BENCH_FAISS
#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <omp.h>
#endif

namespace clusterkv::bench {
namespace {

constexpr int kPrompt = 32768, kSegment = 2048, kClusters = 256, kIterations = 4, kDim = 128;

/// [kPrompt, kDim], normal.
std::vector<float> make_keys() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> keys(std::size_t{kPrompt} * kDim);
  for (float& x : keys) x = normal(random);
  return keys;
}

void ours(benchmark::State& state) {
  const std::vector<float> keys = make_keys();
  std::vector<std::uint16_t> rows(2 * keys.size());  // key and value of a token, side by side
  for (std::size_t i = 0; i < keys.size(); ++i) {
    rows[i / kDim * 2 * kDim + i % kDim] = float_to_bf16(keys[i]);
  }
  std::vector<std::uint32_t> pages(kPrompt / kPageRows);
  std::iota(pages.begin(), pages.end(), 0U);
  std::vector<std::byte> memory(cluster::segment_scratch_bytes(kSegment, kClusters, kDim));
  const auto scratch = cluster::carve_segment_scratch(memory.data(), kSegment, kClusters, kDim);
  const RowStore store{reinterpret_cast<std::byte*>(rows.data()), rows.size() * 2, 4 * kDim,
                       DType::kBF16, kDim};
  for (auto _ : state) {
    for (int first = 0; first < kPrompt; first += kSegment) {
      cluster::cpu().cluster_segment({.keys = {store, pages.data(), first, kSegment, 0},
                                      .num_clusters = kClusters,
                                      .metric = Metric::kCosine,
                                      .iterations = kIterations},
                                     scratch);
      benchmark::ClobberMemory();
    }
  }
}

#ifdef CLUSTERKV_BENCH_FAISS
void by_faiss(benchmark::State& state) {
  const std::vector<float> keys = make_keys();
  omp_set_num_threads(1);
  faiss::ClusteringParameters parameters;
  parameters.niter = kIterations;
  parameters.spherical = true;
  parameters.min_points_per_centroid = 1;  // it warns below 39
  for (auto _ : state) {
    for (int first = 0; first < kPrompt; first += kSegment) {
      faiss::Clustering clustering(kDim, kClusters, parameters);
      faiss::IndexFlatIP index(kDim);
      clustering.train(kSegment, keys.data() + std::size_t{kDim} * static_cast<std::size_t>(first),
                       index);
      benchmark::ClobberMemory();
    }
  }
}
#endif

void medians(benchmark::internal::Benchmark* bench) {
  bench->Repetitions(kRepeats)->ReportAggregatesOnly()->Unit(benchmark::kMillisecond);
}

BENCHMARK(ours)->Name("cluster/segments/cpu")->Apply(medians);
#ifdef CLUSTERKV_BENCH_FAISS
BENCHMARK(by_faiss)->Name("cluster/segments/faiss")->Apply(medians);
#endif

}  // namespace
}  // namespace clusterkv::bench
