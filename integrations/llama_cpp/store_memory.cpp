// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/store_memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

namespace clusterkv::llama_cpp {
namespace {

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

void* StoreMemory::allocate(std::size_t bytes, std::size_t alignment, Device) {
  if (alignment > page_bytes()) return nullptr;
  const std::size_t size = std::max<std::size_t>(bytes, 1);
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  madvise(data, size, MADV_NOHUGEPAGE);  // a wish: where it is not granted, more is resident
  blocks_[data] = size;
  return data;
}

void StoreMemory::deallocate(void* data, std::size_t, std::size_t, Device) noexcept {
  const auto block = blocks_.find(data);
  if (block == blocks_.end()) return;
  munmap(data, block->second);
  blocks_.erase(block);
}

std::size_t StoreMemory::resident_bytes() const {
  std::size_t pages = 0;
  for (const auto& [data, bytes] : blocks_) {
    std::vector<unsigned char> is_in((bytes + page_bytes() - 1) / page_bytes());
    if (mincore(data, bytes, is_in.data()) != 0) continue;
    pages += static_cast<std::size_t>(
        std::count_if(is_in.begin(), is_in.end(), [](unsigned char in) { return (in & 1) != 0; }));
  }
  return pages * page_bytes();
}

}  // namespace clusterkv::llama_cpp
