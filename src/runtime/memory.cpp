// SPDX-License-Identifier: Apache-2.0
#include "clusterkv/memory.hpp"

#include <algorithm>
#include <cstdlib>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace clusterkv {
inline namespace v0 {

MemoryResource::~MemoryResource() = default;

namespace {

/// Rows are read at random places: with pages of 4 KiB every few rows cost a walk through page tables.
constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

class HostMemory final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t alignment, Device) override {
    if (bytes >= kHugePageBytes) alignment = std::max(alignment, kHugePageBytes);
    void* data = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
#ifdef MADV_HUGEPAGE
    // A wish: where it is not granted, pages are small.
    if (data != nullptr && bytes >= kHugePageBytes) madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return data;
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
