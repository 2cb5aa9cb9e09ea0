// SPDX-License-Identifier: Apache-2.0
//
// Decode attention of one layer by ggml's CPU backend, with flash attention and without, beside dense_decode
// and a decode step of this library: 32 query / 8 KV heads, head_dim 128, one token, rows of 16 bits. Caches
// come in turn, so that rows are read from memory.
#include <benchmark/benchmark.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "bench/support/filled_cache.hpp"
#include "bench/support/limits.hpp"

namespace clusterkv::bench {
namespace {

constexpr int kQueryHeads = 32, kHeads = 8, kDim = 128;
constexpr std::int64_t kBytes = std::int64_t{1} << 28;  ///< several times what a cache holds

template <auto kFree>
struct Freed {
  void operator()(auto* object) const { kFree(object); }
};

/// The attention of several layers, each a graph of its own.
class EngineAttention {
 public:
  EngineAttention(int context, bool flash, int threads)
      : backend_(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr)) {
    ggml_backend_cpu_set_n_threads(backend_.get(), threads);
    const auto layer_bytes = std::int64_t{4} * context * kHeads * kDim;
    const auto layers = static_cast<int>(std::max<std::int64_t>(2, kBytes / layer_bytes));
    context_.reset(ggml_init({ggml_tensor_overhead() * 16 * static_cast<std::size_t>(layers) +
                                  ggml_graph_overhead() * static_cast<std::size_t>(layers),
                              nullptr, true}));
    for (int i = 0; i < layers; ++i) add_layer(context, flash);
    buffer_.reset(ggml_backend_alloc_ctx_tensors(context_.get(), backend_.get()));
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (ggml_tensor* t = ggml_get_first_tensor(context_.get()); t != nullptr;
         t = ggml_get_next_tensor(context_.get(), t)) {
      if (t->op != GGML_OP_NONE) continue;
      std::vector<float> numbers(static_cast<std::size_t>(ggml_nelements(t)));
      // A mask lets every token be seen.
      if (t->ne[2] > 1) {
        for (float& x : numbers) x = normal(random);
      }
      std::vector<std::byte> bytes(ggml_nbytes(t));
      if (t->type == GGML_TYPE_F32) {
        std::memcpy(bytes.data(), numbers.data(), bytes.size());
      } else {
        ggml_fp32_to_fp16_row(numbers.data(), reinterpret_cast<ggml_fp16_t*>(bytes.data()),
                              ggml_nelements(t));
      }
      ggml_backend_tensor_set(t, bytes.data(), 0, bytes.size());
    }
  }

  void run() {
    ggml_backend_graph_compute(backend_.get(), graphs_[next_]);
    next_ = (next_ + 1) % graphs_.size();
  }

 private:
  void add_layer(int tokens, bool flash) {
    ggml_context* c = context_.get();
    ggml_tensor* q = ggml_new_tensor_3d(c, GGML_TYPE_F32, kDim, 1, kQueryHeads);
    // As llama.cpp views its cache: a head's tokens lie kHeads rows apart; without flash attention a
    // value's elements lie a cache apart.
    ggml_tensor* k =
        ggml_permute(c, ggml_new_tensor_3d(c, GGML_TYPE_F16, kDim, kHeads, tokens), 0, 2, 1, 3);
    ggml_tensor* mask = ggml_new_tensor_2d(c, flash ? GGML_TYPE_F16 : GGML_TYPE_F32, tokens, 1);
    const float scale = 1.0F / std::sqrt(static_cast<float>(kDim));
    ggml_tensor* out = nullptr;
    if (flash) {
      ggml_tensor* v =
          ggml_permute(c, ggml_new_tensor_3d(c, GGML_TYPE_F16, kDim, kHeads, tokens), 0, 2, 1, 3);
      out = ggml_flash_attn_ext(c, q, k, v, mask, scale, 0.0F, 0.0F);
    } else {
      ggml_tensor* v = ggml_new_tensor_3d(c, GGML_TYPE_F16, tokens, kDim, kHeads);
      ggml_tensor* scores = ggml_mul_mat(c, k, q);
      out = ggml_mul_mat(c, v, ggml_soft_max_ext(c, scores, mask, scale, 0.0F));
    }
    graphs_.push_back(ggml_new_graph(c));
    ggml_build_forward_expand(graphs_.back(), out);
  }

  std::unique_ptr<ggml_backend, Freed<ggml_backend_free>> backend_;
  std::unique_ptr<ggml_context, Freed<ggml_free>> context_;
  std::unique_ptr<ggml_backend_buffer, Freed<ggml_backend_buffer_free>> buffer_;
  std::vector<ggml_cgraph*> graphs_;
  std::size_t next_ = 0;
};

void engine(benchmark::State& state, bool flash) {
  EngineAttention attention(static_cast<int>(state.range(0)), flash,
                            static_cast<int>(state.range(1)));
  attention.run();
  for (auto _ : state) attention.run();
}

void dense(benchmark::State& state) {
  FilledCache& cache = filled_cache({.context = static_cast<int>(state.range(0))});
  const auto pool = make_thread_pool(static_cast<int>(state.range(1)));
  for (auto _ : state) cache.dense(*pool, Layout::kNhd);
}

void step(benchmark::State& state) {
  FilledCache& cache = filled_cache({.context = static_cast<int>(state.range(0))});
  const auto pool = make_thread_pool(static_cast<int>(state.range(1)));
  cache.step(512);
  for (auto _ : state) cache.attend(*pool);
}

void contexts(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"context", "threads"})
      ->ArgsProduct({{4096, 8192, 32768}, {1, 2}})
      ->Repetitions(kRepeats)
      ->ReportAggregatesOnly()
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}
BENCHMARK_CAPTURE(engine, flash, true)->Name("attention/ggml/flash")->Apply(contexts);
BENCHMARK_CAPTURE(engine, separate, false)->Name("attention/ggml/separate")->Apply(contexts);
BENCHMARK(dense)->Name("attention/clusterkv/dense_decode")->Apply(contexts);
BENCHMARK(step)->Name("attention/clusterkv/step")->Apply(contexts);

}  // namespace
}  // namespace clusterkv::bench
