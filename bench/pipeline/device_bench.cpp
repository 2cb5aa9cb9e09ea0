// SPDX-License-Identifier: Apache-2.0
//
// The launches of one layer of a decode step on a device, captured in a graph: score, select, attend, and
// recall with all quads there if rows are on the host. Times per layer. Axes: context, batch.
// model_tokens/s: the most that an engine could decode, by these times (bench/support/device.cpp).
#include "bench/support/decode_scene.hpp"

namespace clusterkv::bench {
namespace {

void layer_step(benchmark::State& state, bool host_rows) {
  SceneShape shape{.context = static_cast<int>(state.range(0)),
                   .batch = static_cast<int>(state.range(1)),
                   .host_rows = host_rows};
  if (host_rows) shape.layers = shape.context > 500000 ? 1 : 4;
  const DecodeScene& scene = scene_of(shape);
  measure(state, {.layers = scene.layers(), .tokens = shape.batch}, [&](void* stream) {
    for (int i = 0; i < scene.layers(); ++i) {
      scene.score(i, stream);
      scene.select(i, stream);
      if (host_rows) scene.recall(i, stream);
      scene.attend(i, stream);
    }
  });
}

/// The same where quads are missing. Axes: per cent of the rows in device memory, as kHybrid has them, and of the
/// others' quads in slots. A launch that takes quads from their slots is measured with it.
void recalled_step(benchmark::State& state) {
  const SceneShape shape{
      .host_rows = true, .near_percent = static_cast<int>(state.range(0)), .layers = 4};
  const int missing = 100 - static_cast<int>(state.range(1));
  const DecodeScene& scene = scene_of(shape);
  const auto run = [&](void* stream) {
    for (int i = 0; i < scene.layers(); ++i) {
      scene.score(i, stream);
      scene.select(i, stream);
      scene.drop(i, stream, missing);
      scene.recall(i, stream);
      scene.attend(i, stream);
    }
  };
  run(nullptr);
  double bytes = 0;
  for (int i = 0; i < scene.layers(); ++i) bytes += scene.recalled_bytes(i);
  measure(state, {.link_bytes = bytes, .layers = scene.layers(), .tokens = shape.batch}, run);
}
BENCHMARK(recalled_step)
    ->Name("pipeline/layer/cuda/by_residency_and_hits")
    ->ArgNames({"near", "hits"})
    ->ArgsProduct({{0, 50}, {0, 90, 100}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

void contexts(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"context", "batch"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int context : {4096, 32768, 131072, 1048576}) bench->Args({context, 1});
  bench->Args({131072, 8});
}
BENCHMARK_CAPTURE(layer_step, rows_on_device, false)
    ->Name("pipeline/layer/cuda/rows_on_device")
    ->Apply(contexts);
BENCHMARK_CAPTURE(layer_step, rows_on_host, true)
    ->Name("pipeline/layer/cuda/rows_on_host")
    ->Apply(contexts);

}  // namespace
}  // namespace clusterkv::bench
