// SPDX-License-Identifier: Apache-2.0
//
// Runs the device suites on a device. What a suite hands to an op may lie anywhere: on the heap, in a
// vector, on the stack. So all of this program's memory is pinned and mapped: `new` takes from a pool of
// it, and the tests run on a thread whose stack is pinned too. Launches block, so results are there when
// an op returns. Guarded buffers have an allocation of the device each, which compute-sanitizer knows the
// ends of; under CLUSTERKV_SANITIZED=1 they have no guards of their own, so that those ends are theirs.
//
// Exit status 77, which ctest counts as skipped, where there is no device; with
// CLUSTERKV_REQUIRE_CUDA=1 that is a failure.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <memory_resource>
#include <new>

#include "kernels/common/cuda/check.hpp"
#include "tests/support/stores.hpp"

namespace {

using clusterkv::cuda::check;

void* allocate_pinned(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable),
        "cudaHostAlloc");
  return memory;
}

void* allocate_managed(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaMallocManaged(&memory, bytes == 0 ? 1 : bytes), "cudaMallocManaged");
  return memory;
}

bool is_set(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value == '1';
}

class PinnedMemory : public std::pmr::memory_resource {
  void* do_allocate(std::size_t bytes, std::size_t) override { return allocate_pinned(bytes); }
  void do_deallocate(void* memory, std::size_t, std::size_t) override { cudaFreeHost(memory); }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

/// Null before main() and where there is no device: then memory is the C library's.
std::atomic<std::pmr::memory_resource*> pool = nullptr;

/// Before each block: who gave it. Keeps the alignment of the block.
struct alignas(64) Header {
  std::pmr::memory_resource* from;
  std::size_t bytes;
};

void* allocate(std::size_t bytes) {
  std::pmr::memory_resource* from = pool;
  bytes += sizeof(Header);
  void* memory = from != nullptr ? from->allocate(bytes, alignof(Header))
                                 : std::aligned_alloc(alignof(Header), (bytes + 63) / 64 * 64);
  if (memory == nullptr) throw std::bad_alloc();
  return new (memory) Header{from, bytes} + 1;
}

void release(void* memory) noexcept {
  if (memory == nullptr) return;
  Header* header = static_cast<Header*>(memory) - 1;
  if (header->from == nullptr) return std::free(header);
  header->from->deallocate(header, header->bytes, alignof(Header));
}

constexpr std::size_t kStackBytes = std::size_t{16} << 20;

int run_on_pinned_stack() {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, allocate_pinned(kStackBytes), kStackBytes);
  int result = 1;
  pthread_t thread;
  const auto run = [](void* to) -> void* {
    *static_cast<int*>(to) = RUN_ALL_TESTS();
    return nullptr;
  };
  if (pthread_create(&thread, &attributes, run, &result) != 0) return 1;
  pthread_join(thread, nullptr);
  return result;
}

}  // namespace

void* operator new(std::size_t bytes) {
  return allocate(bytes);
}
void operator delete(void* memory) noexcept {
  release(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  release(memory);
}

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || devices == 0) {
    std::printf("no device: %s\n", cudaGetErrorString(status));
    return is_set("CLUSTERKV_REQUIRE_CUDA") ? 1 : 77;
  }
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  std::printf("on %s, sm_%d%d\n", device.name, device.major, device.minor);
  static PinnedMemory pinned;
  static std::pmr::synchronized_pool_resource blocks(
      {.max_blocks_per_chunk = 64, .largest_required_pool_block = std::size_t{1} << 20}, &pinned);
  pool = &blocks;
  clusterkv::testing::set_test_memory({allocate_managed, [](void* memory) { cudaFree(memory); },
                                       [](const void*, std::size_t) {},
                                       is_set("CLUSTERKV_SANITIZED") ? std::size_t{0} : 4096});
  const int result = run_on_pinned_stack();
  pool = nullptr;
  return result;
}
