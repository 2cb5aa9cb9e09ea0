// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cuda/runtime.hpp"

#include <cuda_runtime_api.h>

#include "kernels/common/cuda/check.hpp"

namespace clusterkv::cuda {
namespace {

cudaStream_t stream_of(void* stream) {
  return static_cast<cudaStream_t>(stream);
}

/// cudaMalloc aligns to 256 bytes and cudaHostAlloc to a page: more than the library asks for.
class DeviceMemory final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t, Device device) override {
    void* memory = nullptr;
    const cudaError_t status =
        device.kind == Device::kCuda
            ? cudaMalloc(&memory, bytes)
            : cudaHostAlloc(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // else the next launch reports it
      return nullptr;
    }
    check(status, "allocation");
    return memory;
  }
  void deallocate(void* memory, std::size_t, std::size_t, Device device) noexcept override {
    device.kind == Device::kCuda ? cudaFree(memory) : cudaFreeHost(memory);
  }
};

}  // namespace

const char* find_device_fault() noexcept {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) return nullptr;
  cudaGetLastError();
  return "backend: CUDA finds no device or no driver for it, expected kCpu";
}

MemoryResource& device_memory() noexcept {
  static DeviceMemory memory;
  return memory;
}

void copy_async(void* to, const void* from, std::size_t bytes, void* stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(stream)), "cudaMemcpyAsync");
}

void fill_async(void* to, int byte, std::size_t bytes, void* stream) {
  check(cudaMemsetAsync(to, byte, bytes, stream_of(stream)), "cudaMemsetAsync");
}

void wait_for(void* stream) {
  check(cudaStreamSynchronize(stream_of(stream)), "cudaStreamSynchronize");
}

void wait_for_all() {
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream_of(stream), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

SideStream::SideStream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  stream_ = stream;
}

SideStream::~SideStream() {
  cudaStreamDestroy(stream_of(stream_));
}

Event::Event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  event_ = event;
}

Event::~Event() {
  cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

void Event::record(void* stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_), stream_of(stream)), "cudaEventRecord");
}

void Event::hold(void* stream) const {
  check(cudaStreamWaitEvent(stream_of(stream), static_cast<cudaEvent_t>(event_), 0),
        "cudaStreamWaitEvent");
}

void Event::wait() const {
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)), "cudaEventSynchronize");
}

}  // namespace clusterkv::cuda
