// SPDX-License-Identifier: Apache-2.0
//
// Device and shared memory, and what is known of each byte of it. Kernels are compiled with
// -fsanitize=thread but not linked with that sanitizer: its entry points, defined here, see every
// access. CUDA's barriers order accesses; shuffles do not.
#include "runtime/checker.hpp"

#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "runtime/block_run.hpp"

extern "C" const char __executable_start, _end;  // the linker's

namespace simt {
namespace {

/// Static storage of the program, constants included: a device does not see it.
bool is_host_static(const void* at) {
  return at >= static_cast<const void*>(&__executable_start) &&
         at < static_cast<const void*>(&_end);
}

constexpr std::size_t kArenaBytes = std::size_t{1} << 28;
constexpr std::size_t kGuard = 128;  ///< bytes nobody owns between two allocations
constexpr std::size_t kWord = 2;     ///< the smallest element that kernels change in place

enum ByteState : unsigned char { kNobodys = 0, kUnwritten = 1, kWritten = 2, kInFlight = 3 };

/// When and by whom a word was last accessed.
struct Access {
  std::uint32_t epoch = 0;       ///< of the block's barriers; 0: never
  std::uint32_t block = 0;       ///< ordinal of the block in all launches
  std::uint32_t warp_epoch = 0;  ///< of the warp's __syncwarp
  std::int16_t thread = 0;
  std::uint8_t bytes = 0;  ///< mask
  bool is_atomic = false;
  bool many_threads = false;  ///< of the warp
  bool many_warps = false;
};
struct Word {
  Access write;
  Access read;
};

template <class T>
T* reserve(std::size_t count) {
  void* memory = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<T*>(memory);
}

struct Arena {
  std::byte* base = reserve<std::byte>(kArenaBytes);
  unsigned char* state = reserve<unsigned char>(kArenaBytes);
  Word* words = reserve<Word>(kArenaBytes / kWord);
  std::size_t end = kGuard;
  std::map<std::byte*, std::size_t> live;

  [[nodiscard]] bool holds(const void* at) const {
    return static_cast<const std::byte*>(at) >= base &&
           static_cast<const std::byte*>(at) < base + kArenaBytes;
  }
  [[nodiscard]] std::size_t offset(const void* at) const {
    return static_cast<std::size_t>(static_cast<const std::byte*>(at) - base);
  }
  void forget(std::byte* memory, std::size_t bytes, ByteState new_state) {
    std::memset(memory, 0xff, bytes);
    std::memset(state + offset(memory), new_state, bytes);
    std::memset(static_cast<void*>(words + offset(memory) / kWord), 0,
                (bytes + kWord - 1) / kWord * sizeof(Word));
  }
};
Arena& arena() {
  static Arena the_arena;
  return the_arena;
}

bool is_instrumented = false;
std::uint32_t epoch = 1;
std::uint32_t block = 0;
std::uint32_t first_block = 0;  ///< of the launch
std::uint32_t warp_epoch[32];
/// Blocks that published what they wrote by an atomic at an address, and those this one acquired.
std::map<const void*, std::set<std::uint32_t>> published;
std::set<std::uint32_t> acquired;

std::string find_line(const void* pc) {
  Dl_info info{};
  if (dladdr(pc, &info) == 0) return "?";
  const auto offset = static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase) - 1;
  char command[512];
  std::snprintf(command, sizeof command, "addr2line -e '%s' %#lx", info.dli_fname,
                static_cast<unsigned long>(offset));
  std::string line;
  if (FILE* pipe = popen(command, "r")) {
    char text[512];
    while (std::fgets(text, sizeof text, pipe) != nullptr) line += text;
    pclose(pipe);
  }
  line = line.substr(0, line.find_first_of(" \n"));
  return line.substr(line.rfind('/') + 1);
}

const std::string& line_of(const void* pc) {
  static std::map<const void*, std::string> lines;
  const auto [line, is_new] = lines.try_emplace(pc);
  if (is_new) line->second = find_line(pc);
  return line->second;
}

void complain(const char* what, Site site, const void* pc) {
  report(std::string(what) + " at " + (pc == nullptr ? where(site) : line_of(pc)));
}

bool is_other_block(const Access& access) {
  return access.block != block && access.block >= first_block && acquired.count(access.block) == 0;
}

/// Whether this thread's access and an earlier one are ordered by nothing.
bool conflicts(const Access& earlier, std::uint8_t bytes, const Thread& self) {
  if (earlier.epoch == 0 || (earlier.bytes & bytes) == 0) return false;
  if (earlier.block != block) return is_other_block(earlier);
  if (earlier.epoch != epoch) return false;
  if (earlier.many_warps || earlier.thread / 32 != self.warp) return true;
  const bool same_thread = earlier.thread % 32 == self.lane && !earlier.many_threads;
  return !same_thread && earlier.warp_epoch == warp_epoch[self.warp];
}

void remember(Access& access, std::uint8_t bytes, bool is_atomic, bool is_read,
              const Thread& self) {
  const auto thread = static_cast<std::int16_t>(self.warp * 32 + self.lane);
  const bool same_time = access.epoch == epoch && access.block == block && is_read;
  const bool same_warp = access.thread / 32 == self.warp;
  const bool same_step = same_warp && access.warp_epoch == warp_epoch[self.warp];
  access.many_warps = same_time && (access.many_warps || !same_warp);
  access.many_threads = same_time && same_step && (access.many_threads || access.thread != thread);
  access.bytes = static_cast<std::uint8_t>(
      same_time && (same_step || !same_warp) ? access.bytes | bytes : bytes);
  access.epoch = epoch;
  access.block = block;
  access.warp_epoch = warp_epoch[self.warp];
  access.thread = thread;
  access.is_atomic = is_atomic;
}

using checker::Kind;

void check_word(std::size_t at, std::uint8_t bytes, Kind kind, Site site, const void* pc) {
  Word& word = arena().words[at];
  const Thread& self = *current_thread;
  const bool is_atomic = kind == Kind::kAtomic;
  if (conflicts(word.write, bytes, self) && !(is_atomic && word.write.is_atomic)) {
    complain(kind == Kind::kRead ? "race: read after write" : "race: write after write", site, pc);
  }
  if (kind == Kind::kRead) return remember(word.read, bytes, false, true, self);
  if (conflicts(word.read, bytes, self)) complain("race: write after read", site, pc);
  remember(word.write, bytes, is_atomic, false, self);
}

/// Fence, then an atomic: what this block wrote is there for blocks that come to the same place.
void pass_on(const void* at) {
  std::set<std::uint32_t>& blocks = published[at];
  acquired.insert(blocks.begin(), blocks.end());
  if (current_block->current().has_fenced) {
    blocks.insert(block);
    blocks.insert(acquired.begin(), acquired.end());
  }
}

}  // namespace

namespace checker {

bool is_on() {
  return is_instrumented;
}

void begin_launch() {
  ++epoch;
  first_block = block + 1;
  published.clear();
}
void begin_block() {
  ++epoch;
  ++block;
  acquired.clear();
}
void passed_barrier() {
  ++epoch;
}
void passed_syncwarp(int warp) {
  ++warp_epoch[warp];
}

void access(const void* at, std::size_t bytes, Kind kind, Site site, const void* pc) {
  if (current_thread == nullptr) return;
  if (is_host_static(at)) return complain("access to the host's static data", site, pc);
  if (!arena().holds(at)) return;
  const std::size_t first = arena().offset(at);
  for (std::size_t i = first; i < first + bytes; ++i) {
    unsigned char& state = arena().state[i];
    if (state == kNobodys) return complain("out of bounds", site, pc);
    if (kind == Kind::kWrite) {
      state = kWritten;
    } else if (is_on() && state != kWritten) {
      complain(state == kInFlight ? "read of a copy under way" : "uninitialised read", site, pc);
      break;
    }
  }
  if (!is_on()) return;
  if (kind == Kind::kAtomic) pass_on(at);
  for (std::size_t i = first; i < first + bytes;) {
    const std::size_t next = std::min(first + bytes, (i / kWord + 1) * kWord);
    const auto mask = static_cast<std::uint8_t>(((1U << (next - i)) - 1) << (i % kWord));
    check_word(i / kWord, mask, kind, site, pc);
    i = next;
  }
}

void copy_started(const void* to, std::size_t bytes) {
  if (arena().holds(to)) std::memset(arena().state + arena().offset(to), kInFlight, bytes);
}
void copy_arrived(const void* to, std::size_t bytes) {
  if (arena().holds(to)) std::memset(arena().state + arena().offset(to), kWritten, bytes);
}

void poison(std::byte* memory, std::size_t bytes) {
  arena().forget(memory, bytes, kUnwritten);
}

}  // namespace checker

// ------------------------------------------------------------------------------------ memory

void* allocate(std::size_t bytes) {
  Arena& all = arena();
  if (all.live.empty()) all.end = kGuard;
  const std::size_t rounded = (bytes + kGuard - 1) / kGuard * kGuard;
  if (all.end + rounded + kGuard > kArenaBytes) std::abort();
  std::byte* memory = all.base + all.end;
  all.end += rounded + kGuard;
  all.live[memory] = bytes;
  all.forget(memory, bytes, kUnwritten);
  return memory;
}

void release(void* memory) noexcept {
  if (memory == nullptr) return;
  Arena& all = arena();
  const auto found = all.live.find(static_cast<std::byte*>(memory));
  if (found == all.live.end()) return;
  all.forget(found->first, found->second, kNobodys);
  all.live.erase(found);
}

void mark_written(const void* memory, std::size_t bytes) {
  if (arena().holds(memory)) std::memset(arena().state + arena().offset(memory), kWritten, bytes);
}

void check_read(const void* from, std::size_t bytes, std::size_t alignment, Site site) {
  if (reinterpret_cast<std::uintptr_t>(from) % alignment != 0) {
    report("misaligned read at " + where(site));
  }
  checker::access(from, bytes, Kind::kRead, site, nullptr);
}

void check_write(const void* to, std::size_t bytes, std::size_t alignment, Site site) {
  if (reinterpret_cast<std::uintptr_t>(to) % alignment != 0) {
    report("misaligned write at " + where(site));
  }
  checker::access(to, bytes, Kind::kWrite, site, nullptr);
}

void note_atomic(const void* at, std::size_t bytes, Site site) {
  checker::access(at, bytes, Kind::kAtomic, site, nullptr);
}

namespace {

void hook(const void* at, std::size_t bytes, Kind kind, const void* pc) {
  if (current_thread == nullptr) return;
  checker::access(at, bytes, kind, {"", 0}, pc);
  if (!arena().holds(at)) return;
  if (reinterpret_cast<std::uintptr_t>(at) % bytes != 0) complain("misaligned access", {"", 0}, pc);
  if (draw_preemption()) current_block->give_way();
}

}  // namespace
}  // namespace simt

// ----------------------------------------------------- entry points of instrumented kernels

#define SIMT_HOOKS(bytes)                                                            \
  void __tsan_read##bytes(void* at) {                                                \
    simt::hook(at, bytes, simt::checker::Kind::kRead, __builtin_return_address(0));  \
  }                                                                                  \
  void __tsan_write##bytes(void* at) {                                               \
    simt::hook(at, bytes, simt::checker::Kind::kWrite, __builtin_return_address(0)); \
  }
#define SIMT_UNALIGNED(bytes)                                              \
  void __tsan_unaligned_read##bytes(void* at) {                            \
    simt::checker::access(at, bytes, simt::checker::Kind::kRead, {"", 0},  \
                          __builtin_return_address(0));                    \
  }                                                                        \
  void __tsan_unaligned_write##bytes(void* at) {                           \
    simt::checker::access(at, bytes, simt::checker::Kind::kWrite, {"", 0}, \
                          __builtin_return_address(0));                    \
  }

extern "C" {
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
SIMT_UNALIGNED(2)
SIMT_UNALIGNED(4)
SIMT_UNALIGNED(8)
SIMT_UNALIGNED(16)
void __tsan_init() {
  simt::is_instrumented = true;
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* at, unsigned long bytes) {
  simt::checker::access(at, bytes, simt::checker::Kind::kRead, {"", 0},
                        __builtin_return_address(0));
}
void __tsan_write_range(void* at, unsigned long bytes) {
  simt::checker::access(at, bytes, simt::checker::Kind::kWrite, {"", 0},
                        __builtin_return_address(0));
}
}
