// SPDX-License-Identifier: Apache-2.0
//
// The heap of a test program is the executor's arena, so that kernels that leave a std::vector are seen
// to do so, as on a device whose sanitizer knows each allocation. What does not fit is the C library's.
#include <cstdlib>
#include <new>

#include "runtime/memory.hpp"

namespace {

constexpr std::size_t kAlignment = 128;  // of the arena

void* allocate(std::size_t bytes, std::size_t alignment) {
  void* memory = alignment <= kAlignment ? simt::take(bytes) : nullptr;
  if (memory == nullptr) {
    memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  }
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void release(void* memory) noexcept {
  if (memory != nullptr && !simt::give_back(memory)) std::free(memory);
}

}  // namespace

void* operator new(std::size_t bytes) {
  return allocate(bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  release(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  release(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  release(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  release(memory);
}
