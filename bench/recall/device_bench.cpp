// SPDX-License-Identifier: Apache-2.0
//
// recall_quads on a device, times per layer: all quads copied from pinned memory, or all there.
#include "bench/support/decode_scene.hpp"

namespace clusterkv::bench {
namespace {

SceneShape shape_of(const benchmark::State& state) {
  return {
      .context = 32768, .batch = static_cast<int>(state.range(0)), .host_rows = true, .layers = 4};
}

void copy_all(benchmark::State& state) {
  const DecodeScene& scene = scene_of(shape_of(state));
  const auto run = [&](void* stream) {
    for (const std::uint32_t plan : {2U, 3U}) {
      for (int i = 0; i < scene.layers(); ++i) scene.recall_again(i, stream, plan);
    }
  };
  run(nullptr);
  double bytes = 0;
  for (int i = 0; i < scene.layers(); ++i) bytes += 2 * scene.recalled_bytes(i);
  measure(state, {.link_bytes = bytes, .layers = 2 * scene.layers()}, run);
}

void all_hits(benchmark::State& state) {
  const DecodeScene& scene = scene_of(shape_of(state));
  for (int i = 0; i < scene.layers(); ++i) scene.recall(i, nullptr);
  measure(state, {.layers = scene.layers()}, [&](void* stream) {
    for (int i = 0; i < scene.layers(); ++i) scene.recall(i, stream);
  });
}

void batches(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"batch"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int batch : {1, 8}) bench->Arg(batch);
}
BENCHMARK(copy_all)->Name("recall/recall_quads/cuda/copies_by_batch")->Apply(batches);
BENCHMARK(all_hits)->Name("recall/recall_quads/cuda/hits_by_batch")->Apply(batches);

}  // namespace
}  // namespace clusterkv::bench
