// SPDX-License-Identifier: Apache-2.0
//
// What is behind the handles of the C API, and callbacks as the interfaces of the C++ API.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "clusterkv/kv_cache.hpp"
#include "clusterkv/selector.hpp"
#include "src/c_support.hpp"

namespace clusterkv::c {

class CallbackExecutor final : public Executor {
 public:
  explicit CallbackExecutor(const ckv_executor_callbacks& callbacks) : callbacks_(callbacks) {}
  [[nodiscard]] int concurrency() const noexcept override { return callbacks_.concurrency; }
  void run(int num_tasks, void (*task)(void* arg, int index), void* arg) override {
    const int failure = callbacks_.run(callbacks_.context, num_tasks, task, arg);
    if (failure != 0) fail<CallbackError>("executor.run: {}, expected 0", failure);
  }

 private:
  ckv_executor_callbacks callbacks_;
};

/// CKV_DEVICE_…
constexpr std::int32_t device_type_of(Device device) {
  if (device.kind == Device::kHost) return CKV_DEVICE_CPU;
  return device.kind == Device::kCuda ? CKV_DEVICE_CUDA : CKV_DEVICE_CUDA_HOST;
}

class CallbackMemory final : public MemoryResource {
 public:
  explicit CallbackMemory(const ckv_memory_callbacks& callbacks) : callbacks_(callbacks) {}
  void* allocate(std::size_t bytes, std::size_t alignment, Device device) override {
    return callbacks_.allocate(callbacks_.context, bytes, alignment, device_type_of(device),
                               device.index);
  }
  void deallocate(void* data, std::size_t bytes, std::size_t alignment,
                  Device device) noexcept override {
    callbacks_.deallocate(callbacks_.context, data, bytes, alignment, device_type_of(device),
                          device.index);
  }

 private:
  ckv_memory_callbacks callbacks_;
};

/// A cache or selector with what it borrows.
template <class Cache>
struct Handle {
  std::unique_ptr<MemoryResource> memory;
  Backend backend;
  Cache cache;
  std::atomic<int> plans = 0;  ///< that are not destroyed yet
};

}  // namespace clusterkv::c

// NOLINTBEGIN(readability-identifier-naming): names of C
struct ckv_executor {
  std::unique_ptr<clusterkv::Executor> executor;
  clusterkv::LentThreads* lent;  ///< `executor`, if it is one
};

struct ckv_cache {
  clusterkv::c::Handle<clusterkv::ClusterKVCache> handle;
};

struct ckv_selector {
  clusterkv::c::Handle<clusterkv::ClusterSelector> handle;
};

struct ckv_plan {
  clusterkv::DecodePlan plan;
  std::vector<clusterkv::StepRow> rows;  ///< scratch of update(), as long as any step's
  std::int32_t max_rows;
  std::atomic<int>* plans;  ///< of the handle that made it
  // Of the newest select().
  std::int64_t shape[3];
  std::int64_t stride[3];
};
// NOLINTEND(readability-identifier-naming)
