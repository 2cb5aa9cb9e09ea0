// SPDX-License-Identifier: Apache-2.0
//
// Memory that kernels may touch, and what is known of each byte of it: an arena of allocations, which
// also holds the heap of the test programs (heap.cpp), and the static shared memory of kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

enum ByteState : unsigned char { kNobodys = 0, kUnwritten = 1, kWritten = 2, kInFlight = 3 };

/// When and by whom a word was last accessed.
struct Access {
  std::uint32_t epoch = 0;  ///< of the block's barriers; 0: never
  std::uint32_t block = 0;  ///< ordinal of the block in all launches
  std::uint32_t tick = 0;   ///< of the warp's __syncwarp, the first of these lanes
  std::uint32_t lanes = 0;  ///< mask
  std::uint8_t warp = 0;
  std::uint8_t bytes = 0;  ///< mask
  bool is_atomic = false;
  bool many_warps = false;  ///< not only that one
};
struct Word {
  Access write;
  Access read;
};
constexpr std::size_t kWord = 2;  ///< bytes: the smallest element that kernels change in place

struct Region {
  std::byte* base = nullptr;
  std::size_t bytes = 0;
  unsigned char* state = nullptr;
  Word* words = nullptr;

  [[nodiscard]] bool holds(const void* at) const {
    return static_cast<const std::byte*>(at) >= base &&
           static_cast<const std::byte*>(at) < base + bytes;
  }
  [[nodiscard]] std::size_t offset(const void* at) const {
    return static_cast<std::size_t>(static_cast<const std::byte*>(at) - base);
  }
};

/// The arena and the static shared memory; empty until they are made.
extern constinit Region watched[2];

/// Null for other memory: that of fibers' stacks, and the host's own.
inline const Region* region_of(const void* at) {
  for (const Region& region : watched) {
    if (region.holds(at)) return &region;
  }
  return nullptr;
}
void set_state(const void* memory, std::size_t bytes, ByteState state);

/// All that kernels of this program have as `__shared__`, as this thread sees it. See device.hpp.
struct StaticShared {
  std::byte* base = nullptr;
  std::size_t bytes = 0;
};
StaticShared find_static_shared();

/// Memory of the arena, written; null if there is no room.
void* take(std::size_t bytes) noexcept;
/// False if the arena did not give it.
bool give_back(void* memory) noexcept;

}  // namespace simt
