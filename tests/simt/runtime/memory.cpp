// SPDX-License-Identifier: Apache-2.0
//
// Nothing here may use `new`: the heap of the test programs is this arena.
#include "runtime/memory.hpp"

#include <link.h>
#include <sys/mman.h>

#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "simt/executor.hpp"

namespace simt {

constinit Region watched[2];

namespace {

constexpr std::size_t kArenaBytes = std::size_t{1} << 31;
constexpr std::size_t kGranule = 128;  ///< allocations begin at multiples of it
constexpr std::size_t kGap = 128;      ///< bytes nobody owns between two allocations
constexpr std::size_t kSmall = 4096;   ///< up to here each number of granules has its own list
constexpr std::size_t kMaxStatic = 1 << 20;

template <class T>
T* reserve(std::size_t count) {
  void* memory = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<T*>(memory);
}

Region make_region(std::byte* base, std::size_t bytes, std::size_t most) {
  return {base, bytes, reserve<unsigned char>(most), reserve<Word>(most / kWord + 1)};
}

/// Memory of a size, from the list of those given back or from where nothing was yet.
struct Arena {
  Arena() { region = make_region(reserve<std::byte>(kArenaBytes), kArenaBytes, kArenaBytes); }

  Region& region = watched[0];
  // By the granule an allocation begins at. Apart from it, so that broken kernels cannot harm them.
  std::uint32_t* bytes = reserve<std::uint32_t>(kArenaBytes / kGranule);
  std::uint32_t* next = reserve<std::uint32_t>(kArenaBytes / kGranule);
  std::size_t end = kGap;
  std::uint32_t free[256] = {};  ///< granules, by size class
  std::mutex mutex;

  /// Room for `bytes`: multiples of a granule, then four steps to the next power of two.
  static std::size_t room(std::size_t bytes) {
    const std::size_t step = bytes <= kSmall ? kGranule : std::bit_floor(bytes - 1) / 4;
    return (bytes + step - 1) / step * step;
  }
  static std::size_t size_class(std::size_t room) {
    if (room <= kSmall) return room / kGranule;
    const std::size_t power = std::bit_floor(room);
    return kSmall / kGranule + 4 * static_cast<std::size_t>(std::countr_zero(power)) +
           room / (power / 4);
  }
};
Arena& arena() {
  static Arena the_arena;
  return the_arena;
}
Region& static_shared = watched[1];

}  // namespace

void set_state(const void* memory, std::size_t bytes, ByteState state) {
  const Region* region = region_of(memory);
  if (region != nullptr) std::memset(region->state + region->offset(memory), state, bytes);
}

StaticShared find_static_shared() {
  StaticShared found;
  // The first object is the program itself.
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* to) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
          *static_cast<StaticShared*>(to) = {static_cast<std::byte*>(info->dlpi_tls_data),
                                             info->dlpi_phdr[i].p_memsz};
        }
        return 1;
      },
      &found);
  if (found.bytes > kMaxStatic) std::abort();
  if (static_shared.state == nullptr) static_shared = make_region(nullptr, 0, kMaxStatic);
  static_shared.base = found.base;
  static_shared.bytes = found.bytes;
  return found;
}

void* take(std::size_t bytes) noexcept {
  Arena& all = arena();
  const std::size_t room = Arena::room(bytes == 0 ? 1 : bytes);
  const std::lock_guard lock(all.mutex);
  std::uint32_t& free = all.free[Arena::size_class(room)];
  std::size_t granule = free;
  if (granule != 0) {
    free = all.next[granule];
  } else {
    if (room > kArenaBytes - all.end - kGap) return nullptr;
    granule = all.end / kGranule;
    all.end += room + kGap;
  }
  all.bytes[granule] = static_cast<std::uint32_t>(bytes);
  std::memset(all.region.state + granule * kGranule, kWritten, bytes);
  return all.region.base + granule * kGranule;
}

bool give_back(void* memory) noexcept {
  Arena& all = arena();
  if (!all.region.holds(memory)) return false;
  const std::lock_guard lock(all.mutex);
  const std::size_t at = all.region.offset(memory);
  const auto granule = static_cast<std::uint32_t>(at / kGranule);
  const std::size_t bytes = all.bytes[granule];
  std::memset(all.region.state + at, kNobodys, bytes);
  std::uint32_t& free = all.free[Arena::size_class(Arena::room(bytes == 0 ? 1 : bytes))];
  all.next[granule] = free;
  free = granule;
  return true;
}

// --------------------------------------------------------------------------- for the tests

void* allocate(std::size_t bytes) {
  void* memory = take(bytes);
  if (memory == nullptr) std::abort();
  std::memset(memory, 0xff, bytes);
  set_state(memory, bytes, kUnwritten);
  return memory;
}

void release(void* memory) noexcept {
  if (memory != nullptr) give_back(memory);
}

void mark_written(const void* memory, std::size_t bytes) {
  set_state(memory, bytes, kWritten);
}

void mark_guard(const void* memory, std::size_t bytes) {
  set_state(memory, bytes, kNobodys);
}

}  // namespace simt
