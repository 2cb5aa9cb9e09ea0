// SPDX-License-Identifier: Apache-2.0
//
// attend on a device, times per layer: chosen rows with the tail, and all rows. Axes: budget, batch,
// context.
#include "bench/support/decode_scene.hpp"

namespace clusterkv::bench {
namespace {

void sparse(benchmark::State& state) {
  const DecodeScene& scene = scene_of({.context = static_cast<int>(state.range(0)),
                                       .batch = static_cast<int>(state.range(1)),
                                       .budget = static_cast<int>(state.range(2))});
  measure(state, {.bytes = scene.row_bytes(), .layers = scene.layers()}, [&](void* stream) {
    for (int i = 0; i < scene.layers(); ++i) scene.attend(i, stream);
  });
}
BENCHMARK(sparse)
    ->Name("attend/attend/cuda/by_context_batch_budget")
    ->ArgNames({"context", "batch", "budget"})
    ->Args({4096, 1, 512})
    ->Args({32768, 1, 512})
    ->Args({32768, 1, 1024})
    ->Args({32768, 1, 2048})
    ->Args({131072, 1, 512})
    ->Args({1048576, 1, 512})
    ->Args({32768, 8, 512})
    ->Args({32768, 32, 512})
    ->Args({32768, 32, 2048})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

void dense(benchmark::State& state) {
  const SceneShape shape{.context = static_cast<int>(state.range(0)),
                         .batch = static_cast<int>(state.range(1))};
  const DecodeScene& scene = scene_of(shape);
  measure(state, {.bytes = scene.dense_bytes(), .layers = scene.layers(), .tokens = shape.batch},
          [&](void* stream) {
            for (int i = 0; i < scene.layers(); ++i) scene.attend(i, stream, /*dense=*/true);
          });
}
BENCHMARK(dense)
    ->Name("attend/all_rows/cuda/by_context")
    ->ArgNames({"context", "batch"})
    ->Args({4096, 1})
    ->Args({32768, 1})
    ->Args({131072, 1})
    ->Args({1048576, 1})
    ->Args({32768, 8})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace clusterkv::bench
