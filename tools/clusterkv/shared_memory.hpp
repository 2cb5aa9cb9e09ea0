// SPDX-License-Identifier: Apache-2.0
//
// Memory that a cache's backend and the host read and write by the same address.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

#include "clusterkv/memory.hpp"

namespace clusterkv::tool {

inline Device shared_device(Backend backend) {
  return {backend == Backend::kCuda ? Device::kPinned : Device::kHost};
}

template <class T>
class SharedAllocator {
 public:
  using value_type = T;

  explicit SharedAllocator(Backend backend) : backend_(backend) {}
  template <class U>
  explicit SharedAllocator(const SharedAllocator<U>& other) : backend_(other.backend()) {}

  T* allocate(std::size_t count) {
    void* data = default_memory_resource(backend_).allocate(count * sizeof(T), kAlignment,
                                                            shared_device(backend_));
    if (data == nullptr) throw std::bad_alloc();
    return static_cast<T*>(data);
  }
  void deallocate(T* data, std::size_t count) noexcept {
    default_memory_resource(backend_).deallocate(data, count * sizeof(T), kAlignment,
                                                 shared_device(backend_));
  }
  [[nodiscard]] Backend backend() const { return backend_; }
  bool operator==(const SharedAllocator&) const = default;

 private:
  static constexpr std::size_t kAlignment = 64;
  Backend backend_;
};

template <class T>
using SharedVector = std::vector<T, SharedAllocator<T>>;

}  // namespace clusterkv::tool
