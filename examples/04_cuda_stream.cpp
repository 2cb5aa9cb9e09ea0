// SPDX-License-Identifier: Apache-2.0
//
// The CUDA backend under an engine's stream: a prompt, then a decode step captured once into a graph and
// replayed. Built with CLUSTERKV_CUDA=ON. Exit status 77 without a device.
#include <cuda_runtime_api.h>
#include <clusterkv/clusterkv.hpp>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace ckv = clusterkv;

namespace {

constexpr int kQHeads = 8, kKvHeads = 2, kHeadDim = 128, kPrompt = 8192, kSteps = 64;

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::printf("%s\n", cudaGetErrorString(status));
  std::exit(1);
}

/// A tensor on the device, as the engine's kernels would fill it.
ckv::TensorView tensor(int tokens, int heads) {
  const auto count = static_cast<std::size_t>(tokens * heads * kHeadDim);
  std::vector<float> data(count);
  for (float& x : data) x = static_cast<float>(std::rand() % 1000) / 1000 - 0.5F;
  void* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(float)));
  check(cudaMemcpy(memory, data.data(), count * sizeof(float), cudaMemcpyDefault));
  ckv::TensorView view = ckv::contiguous_view(memory, ckv::DType::kF32, {tokens, heads, kHeadDim});
  view.device = {ckv::Device::kCuda};
  return view;
}

}  // namespace

int main() {
  auto config = ckv::CacheConfig::standard(
      {.num_layers = 1, .num_q_heads = kQHeads, .num_kv_heads = kKvHeads, .head_dim = kHeadDim});
  config.select.dense_layers = 0;
  config.max_sequences = 1;
  config.max_tokens = 16384;
  config.store.live_tokens = 4096;  // prompts come in chunks
  const ckv::Support support = ckv::ClusterKVCache::supports(config, ckv::Backend::kCuda);
  if (!support.ok) {
    std::printf("%s\n", support.reason);
    return 77;
  }
  cudaStream_t handle = nullptr;
  check(cudaStreamCreate(&handle));
  const ckv::Stream stream{ckv::Backend::kCuda, handle};
  ckv::ClusterKVCache cache(config, {.backend = ckv::Backend::kCuda});
  const ckv::SequenceId id = cache.add_sequence();

  const ckv::PlanLimits limits{.max_rows = 1, .max_new_tokens = 1024};
  const auto needs = ckv::ClusterKVCache::memory_needs(config, ckv::Backend::kCuda, limits);
  ckv::Workspace workspace{nullptr, needs.workspace_bytes, nullptr, needs.workspace_pinned_bytes};
  check(cudaMalloc(&workspace.data, workspace.bytes));
  check(cudaHostAlloc(&workspace.pinned, workspace.pinned_bytes, cudaHostAllocDefault));

  ckv::DecodePlan plan;
  const ckv::TensorView prompt_key = tensor(1024, kKvHeads);
  for (int done = 0; done < kPrompt; done += 1024) {
    const bool last = done + 1024 == kPrompt;
    const ckv::StepRow row{id, 1024, 0, last ? ckv::Phase::kPrefillLast : ckv::Phase::kPrefill};
    if (done == 0) {
      plan = cache.plan({&row, 1}, limits, workspace, stream);
    } else {
      cache.update(plan, {&row, 1}, stream);
    }
    cache.append(0, plan, prompt_key, prompt_key, stream);
  }

  const ckv::TensorView key = tensor(1, kKvHeads), query = tensor(1, kQHeads);
  const ckv::AttendArgs args{query, {tensor(1, kQHeads)}};
  const ckv::StepRow row{id};
  cudaGraphExec_t step = nullptr;
  for (int i = 0; i < kSteps; ++i) {
    cache.update(plan, {&row, 1}, stream);
    if (step == nullptr) {
      cudaGraph_t graph = nullptr;
      check(cudaStreamBeginCapture(handle, cudaStreamCaptureModeThreadLocal));
      cache.append(0, plan, key, key, stream);
      // With more layers: prefetch(layer + 1, plan, hint, stream) here, and limits.prefetch.
      cache.attend(0, plan, args, stream);
      check(cudaStreamEndCapture(handle, &graph));
      check(cudaGraphInstantiate(&step, graph, 0));
    }
    check(cudaGraphLaunch(step, handle));
  }
  const ckv::StepStats stats = cache.stats().step;
  std::printf("%lld tokens, attended %lld a head in the last step; %lld quads hit, %lld missed\n",
              static_cast<long long>(cache.length(id)),
              static_cast<long long>(stats.attended_tokens / stats.selections),
              static_cast<long long>(stats.quad_hits), static_cast<long long>(stats.quad_misses));
  return 0;
}
