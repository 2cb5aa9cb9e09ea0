// SPDX-License-Identifier: Apache-2.0
#include "bench/support/device.hpp"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <new>

#ifndef CLUSTERKV_SIMT
#include <cuda_runtime_api.h>

#include "kernels/common/cuda/check.hpp"
#endif

namespace clusterkv::bench {

#ifdef CLUSTERKV_SIMT

void* allocate(std::size_t bytes, Place) {
  return std::memset(operator new (bytes, std::align_val_t{128}), 0, bytes);
}
void release(void* memory, Place) noexcept {
  operator delete (memory, std::align_val_t{128});
}
void copy(void* to, const void* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}
const Limits& limits() {
  static const Limits none{1, 1, 0};
  return none;
}

namespace {

class Launches {
 public:
  explicit Launches(const std::function<void(void*)>& run) : run_(run) {}
  [[nodiscard]] double seconds() const {
    const auto start = std::chrono::steady_clock::now();
    run_(nullptr);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  const std::function<void(void*)>& run_;
};

}  // namespace

#else

using cuda::check;

void* allocate(std::size_t bytes, Place place) {
  void* memory = nullptr;
  if (place == Place::kDevice) {
    check(cudaMalloc(&memory, bytes), "cudaMalloc");
    check(cudaMemset(memory, 0, bytes), "cudaMemset");
  } else {
    check(cudaHostAlloc(&memory, bytes, cudaHostAllocMapped), "cudaHostAlloc");
  }
  return memory;
}
void release(void* memory, Place place) noexcept {
  place == Place::kDevice ? cudaFree(memory) : cudaFreeHost(memory);
}
void copy(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}

namespace {

/// Launches captured in a graph, between two events.
class Launches {
 public:
  /// Runs them once outside: the first use of a kernel may load code, which a capture does not allow.
  explicit Launches(const std::function<void(void*)>& run) {
    check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    check(cudaEventCreate(&start_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
    run(stream_);
    check(cudaStreamSynchronize(stream_), "first run");
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "capture");
    run(stream_);
    check(cudaStreamEndCapture(stream_, &graph), "capture");
    check(cudaGraphInstantiate(&graph_, graph, 0), "cudaGraphInstantiate");
    cudaGraphDestroy(graph);
    seconds();
  }
  Launches(const Launches&) = delete;
  Launches& operator=(const Launches&) = delete;
  ~Launches() {
    cudaGraphExecDestroy(graph_);
    cudaEventDestroy(start_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }
  double seconds() {
    float milliseconds = 0;
    check(cudaEventRecord(start_, stream_), "cudaEventRecord");
    check(cudaGraphLaunch(graph_, stream_), "cudaGraphLaunch");
    check(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "graph");
    check(cudaEventElapsedTime(&milliseconds, start_, end_), "cudaEventElapsedTime");
    return double{milliseconds} / 1000;
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t end_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

double copy_rate(Place from, double bytes_counted) {
  constexpr std::size_t kBytes = std::size_t{1} << 28;
  const Buffer<std::byte> source(kBytes, from), target(kBytes);
  Launches copies([&](void* stream) {
    for (int i = 0; i < 8; ++i) {
      check(cudaMemcpyAsync(target.data(), source.data(), kBytes, cudaMemcpyDefault,
                            static_cast<cudaStream_t>(stream)),
            "cudaMemcpyAsync");
    }
  });
  double best = copies.seconds();
  for (int i = 0; i < 5; ++i) best = std::min(best, copies.seconds());
  return 8 * bytes_counted * double{kBytes} / best;
}

}  // namespace

const Limits& limits() {
  static const Limits measured = [] {
    int cache = 0;
    check(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, 0), "cudaDevAttrL2CacheSize");
    return Limits{copy_rate(Place::kDevice, 2), copy_rate(Place::kPinned, 1), double(cache)};
  }();
  return measured;
}

#endif

std::vector<std::uint16_t> random_bf16(std::size_t count) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> bits(std::min(count, std::size_t{1} << 22));
  for (std::uint16_t& x : bits) {
    x = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(normal(random)) >> 16);
  }
  return bits;
}

namespace {

/// A step of an engine from its parts: the weights of 8 · 10^9 parameters in bf16, read once, and the
/// attention of the layers that such a model has.
constexpr double kModelWeights = 16e9;
constexpr int kModelLayers = 32;

}  // namespace

void measure(benchmark::State& state, const Work& work, const std::function<void(void*)>& run) {
  Launches launches(run);
  double all = 0;
  for (auto _ : state) {
    const double seconds = launches.seconds() / work.layers;
    state.SetIterationTime(seconds);
    all += seconds;
  }
  const double runs = static_cast<double>(state.iterations()) / (all * work.layers);
  if (work.bytes > 0) {
    state.counters["GB/s"] = work.bytes * runs / 1e9;
    state.counters["of_device"] = work.bytes * runs / limits().device;
  }
  if (work.link_bytes > 0) {
    state.counters["link_GB/s"] = work.link_bytes * runs / 1e9;
    state.counters["of_link"] = work.link_bytes * runs / limits().link;
  }
  if (work.operations > 0) state.counters["TFLOP/s"] = work.operations * runs / 1e12;
  if (work.tokens > 0) {
    const double layer = all / static_cast<double>(state.iterations());
    const double step = kModelWeights / limits().device + kModelLayers * layer;
    state.counters["model_tokens/s"] = work.tokens / step;
  }
}

}  // namespace clusterkv::bench
