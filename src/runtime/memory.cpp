// SPDX-License-Identifier: Apache-2.0
#include "clusterkv/memory.hpp"

#include <cstdlib>

namespace clusterkv {
inline namespace v0 {

MemoryResource::~MemoryResource() = default;

namespace {

class HostMemory final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t alignment, Device) override {
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  }
  void deallocate(void* data, std::size_t, std::size_t, Device) noexcept override {
    std::free(data);
  }
};

}  // namespace

MemoryResource& default_memory_resource() noexcept {
  static HostMemory memory;
  return memory;
}

}  // namespace v0
}  // namespace clusterkv
