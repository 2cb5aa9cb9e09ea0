// SPDX-License-Identifier: Apache-2.0
//
// Where the large stores come from. Small bookkeeping uses the standard allocator.
#pragma once

#include <cstddef>

#include "clusterkv/types.hpp"

namespace clusterkv {
inline namespace v0 {

/// A hook for the library's large allocations: all are made in constructors, none in a step.
class MemoryResource {
 public:
  virtual ~MemoryResource();

  /// At least `bytes` bytes aligned to `alignment` (a power of two), or null if there are none: the
  /// library then throws OutOfMemory. May throw; the exception passes through. The memory need not
  /// be zeroed.
  virtual void* allocate(std::size_t bytes, std::size_t alignment, Device device) = 0;

  /// Takes back what allocate() gave for the same three values.
  virtual void deallocate(void* data, std::size_t bytes, std::size_t alignment,
                          Device device) noexcept = 0;

 protected:
  MemoryResource() = default;
  MemoryResource(const MemoryResource&) = default;
  MemoryResource& operator=(const MemoryResource&) = default;
};

/// Host memory of the process. Pages cost memory only once they are written.
MemoryResource& default_memory_resource() noexcept;

/// What a backend takes where it is given no resource: host memory; with kCuda, device memory, and pinned
/// host memory that the device reads and writes by the same address.
/// \throws BackendUnavailable  if the backend was not built, or has no device
MemoryResource& default_memory_resource(Backend backend);

}  // namespace v0
}  // namespace clusterkv
