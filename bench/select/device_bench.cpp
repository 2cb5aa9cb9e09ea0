// SPDX-License-Identifier: Apache-2.0
//
// score_clusters and select_clusters on a device, times per layer. Axes: context, batch.
#include "bench/support/decode_scene.hpp"

namespace clusterkv::bench {
namespace {

void score(benchmark::State& state, on_device::IntegerMath math) {
  const DecodeScene& scene = scene_of(
      {.context = static_cast<int>(state.range(0)), .batch = static_cast<int>(state.range(1))});
  measure(state, {.bytes = scene.index_bytes(), .layers = scene.layers()}, [&](void* stream) {
    for (int i = 0; i < scene.layers(); ++i) scene.score(i, stream, math);
  });
}

void select(benchmark::State& state) {
  const DecodeScene& scene = scene_of(
      {.context = static_cast<int>(state.range(0)), .batch = static_cast<int>(state.range(1))});
  measure(state, {.layers = scene.layers()}, [&](void* stream) {
    for (int i = 0; i < scene.layers(); ++i) scene.select(i, stream);
  });
}

void score_select(benchmark::State& state) {
  const DecodeScene& scene = scene_of(
      {.context = static_cast<int>(state.range(0)), .batch = static_cast<int>(state.range(1))});
  measure(state, {.bytes = scene.index_bytes(), .layers = scene.layers()}, [&](void* stream) {
    for (int i = 0; i < scene.layers(); ++i) {
      scene.score(i, stream);
      scene.select(i, stream);
    }
  });
}

void contexts(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"context", "batch"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int context : {4096, 32768, 131072, 1048576}) bench->Args({context, 1});
  for (const int batch : {8, 32}) bench->Args({32768, batch});
}
BENCHMARK_CAPTURE(score, mma, on_device::IntegerMath::kMma)
    ->Name("select/score_clusters/cuda/mma_by_context")
    ->Apply(contexts);
BENCHMARK_CAPTURE(score, dp4a, on_device::IntegerMath::kDp4a)
    ->Name("select/score_clusters/cuda/dp4a_by_context")
    ->Apply(contexts);
BENCHMARK(select)->Name("select/select_clusters/cuda/by_context")->Apply(contexts);
BENCHMARK(score_select)->Name("select/both/cuda/by_context")->Apply(contexts);

}  // namespace
}  // namespace clusterkv::bench
