// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <utility>

#include "clusterkv/memory.hpp"
#include "src/runtime/check.hpp"

namespace clusterkv::runtime {

/// Memory of a MemoryResource, given back on destruction. Not zeroed.
class Buffer {
 public:
  Buffer() = default;

  /// \throws OutOfMemory  naming `what`
  Buffer(MemoryResource& memory, std::size_t bytes, const char* what, Device device = {})
      : memory_(&memory), bytes_(bytes), device_(device) {
    if (bytes == 0) return;
    data_ = memory.allocate(bytes, kAlignment, device);
    if (data_ == nullptr) fail<OutOfMemory>("{}: no memory for {} bytes", what, bytes);
  }
  ~Buffer() {
    if (data_ != nullptr) memory_->deallocate(data_, bytes_, kAlignment, device_);
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(data_); }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

  static constexpr std::size_t kAlignment = 64;

 private:
  void swap(Buffer& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(device_, other.device_);
  }

  MemoryResource* memory_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Device device_;
};

}  // namespace clusterkv::runtime
