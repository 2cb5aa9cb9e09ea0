// SPDX-License-Identifier: Apache-2.0
//
// Why the rules multiply and then add (docs/decisions/001): the same polynomial with std::fma, which
// without FMA instructions is a call of the C library.
#include <benchmark/benchmark.h>

#include <cmath>
#include <vector>

#include "kernels/common/math.hpp"

namespace {

float exp2_with_fma(float x) {
  constexpr float kRound = 12582912.0F;
  const float shifted = x + kRound;
  const float f = x - (shifted - kRound);
  float p = 1.5252734e-5F;
  for (const float c : {1.5403530e-4F, 1.3333558e-3F, 9.6181291e-3F, 5.5504109e-2F, 2.4022651e-1F,
                        6.9314718e-1F, 1.0F}) {
    p = std::fma(p, f, c);
  }
  return p * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) + 127U) << 23);
}

template <float (*kExp2)(float)>
void run_exp2(benchmark::State& state) {
  std::vector<float> x(65536), y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = -static_cast<float>(i % 100);
  for (auto _ : state) {
    for (std::size_t i = 0; i < x.size(); ++i) y[i] = kExp2(x[i]);
    benchmark::DoNotOptimize(y.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(x.size()));
}

BENCHMARK(run_exp2<clusterkv::exp2_fixed>)->Name("select/exp2/cpu/multiply_add");
BENCHMARK(run_exp2<exp2_with_fma>)->Name("select/exp2/cpu/fma");

}  // namespace
