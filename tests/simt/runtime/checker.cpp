// SPDX-License-Identifier: Apache-2.0
//
// Who accessed what in which order. Kernels are compiled with -fsanitize=thread but not linked with that
// sanitizer: its entry points, defined here, see every access. CUDA's barriers order accesses; shuffles
// do not.
#include "runtime/checker.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "runtime/block_run.hpp"
#include "runtime/memory.hpp"

extern "C" const char __executable_start, _end;  // the linker's

namespace simt {
namespace {

/// What a thread has of its own, what stands for its special registers, and the call of the kernel.
bool is_the_threads(const void* at) {
  const auto holds = [at](const auto* object) { return at >= object && at < object + 1; };
  return is_on_stack(at) || holds(&current_thread) || holds(current_thread) ||
         holds(current_thread->block) || holds(&current_block->kernel());
}

/// Static storage of the program, constants included: a device does not see it.
bool is_host_static(const void* at) {
  return at >= static_cast<const void*>(&__executable_start) &&
         at < static_cast<const void*>(&_end);
}

bool is_instrumented = false;
std::uint32_t epoch = 1;
std::uint32_t block = 0;
std::uint32_t first_block = 0;  ///< of the launch
/// Blocks that published what they wrote by an atomic at an address, and those this one acquired.
std::map<const void*, std::set<std::uint32_t>> published;
std::set<std::uint32_t> acquired;

/// The lanes of a warp, as far as __syncwarp orders them. Never set back: barriers and blocks begin an
/// epoch, and ticks only grow.
struct Warp {
  std::uint32_t tick = 1;  ///< the next __syncwarp
  /// [lane][other]: up to which tick the lane knows what the other did, at first or second hand.
  std::uint32_t seen[kWarpLanes][kWarpLanes] = {};
};
Warp warps[kMaxThreads / kWarpLanes];

/// Those of an access that a lane has not met at a __syncwarp since.
std::uint32_t unmet(const Access& access, const Thread& self) {
  const std::uint32_t others = access.lanes & ~(1U << self.lane);
  const Warp& warp = warps[self.warp];
  if (access.tick == warp.tick) return others;
  std::uint32_t result = 0;
  for (std::uint32_t left = others; left != 0; left &= left - 1) {
    const int other = std::countr_zero(left);
    if (warp.seen[self.lane][other] < access.tick) result |= 1U << other;
  }
  return result;
}

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
bool conflicts(const Access& earlier, std::uint8_t bytes, const Thread& self, bool is_shared) {
  if (earlier.epoch == 0 || (earlier.bytes & bytes) == 0) return false;
  if (earlier.block != block) return !is_shared && is_other_block(earlier);
  if (earlier.epoch != epoch) return false;
  return earlier.many_warps || earlier.warp != self.warp || unmet(earlier, self) != 0;
}

/// Of readers all count that nothing orders before this one; of several, the first one's tick, so that
/// a race may be missed but none is made up.
void remember(Access& access, std::uint8_t bytes, bool is_atomic, bool is_read,
              const Thread& self) {
  const bool same_time = access.epoch == epoch && access.block == block && is_read;
  const std::uint32_t lane = 1U << self.lane;
  if (same_time && (access.many_warps || access.warp != self.warp)) {
    access.many_warps = true;
    access.bytes |= bytes;
    return;
  }
  const std::uint32_t others = same_time ? unmet(access, self) : 0;
  if (others != 0) {
    access.lanes = others | lane;
    access.bytes |= bytes;
    return;
  }
  access = {
      epoch,     block, warps[self.warp].tick, lane, static_cast<std::uint8_t>(self.warp), bytes,
      is_atomic, false};
}

using checker::Kind;

template <class Bytes>
bool is_written_as(const unsigned char* state) {
  Bytes bytes;
  std::memcpy(&bytes, state, sizeof bytes);
  return bytes == static_cast<Bytes>(static_cast<Bytes>(~Bytes{0}) / 255 * kWritten);
}

/// The usual case, told at a glance.
bool is_all_written(const unsigned char* state, std::size_t bytes) {
  switch (bytes) {
    case 1: return *state == kWritten;
    case 2: return is_written_as<std::uint16_t>(state);
    case 4: return is_written_as<std::uint32_t>(state);
    case 8: return is_written_as<std::uint64_t>(state);
    case 16: return is_written_as<std::uint64_t>(state) && is_written_as<std::uint64_t>(state + 8);
    default: return false;
  }
}

/// False if that was not allowed.
bool check_state(unsigned char* state, std::size_t bytes, Kind kind, Site site, const void* pc) {
  if (is_all_written(state, bytes)) return true;
  for (std::size_t i = 0; i < bytes; ++i) {
    if (state[i] == kNobodys) return complain("out of bounds", site, pc), false;
    if (kind == Kind::kWrite) {
      state[i] = kWritten;
    } else if (checker::is_on() && state[i] != kWritten) {
      complain(state[i] == kInFlight ? "read of a copy under way" : "uninitialised read", site, pc);
      return true;
    }
  }
  return true;
}

void check_word(const Region& region, std::size_t at, std::uint8_t bytes, Kind kind, bool is_shared,
                Site site, const void* pc) {
  Word& word = region.words[at];
  const Thread& self = *current_thread;
  const bool is_atomic = kind == Kind::kAtomic;
  if (conflicts(word.write, bytes, self, is_shared) && !(is_atomic && word.write.is_atomic)) {
    complain(kind == Kind::kRead ? "race: read after write" : "race: write after write", site, pc);
  }
  if (kind == Kind::kRead) return remember(word.read, bytes, false, true, self);
  if (conflicts(word.read, bytes, self, is_shared)) complain("race: write after read", site, pc);
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
void passed_syncwarp(int number, std::uint32_t mask) {
  if (!is_on()) return;
  Warp& warp = warps[number];
  std::uint32_t joined[kWarpLanes] = {};
  for (std::uint32_t left = mask; left != 0; left &= left - 1) {
    const std::uint32_t* lane = warp.seen[std::countr_zero(left)];
    for (int i = 0; i < kWarpLanes; ++i) joined[i] = std::max(joined[i], lane[i]);
  }
  for (int i = 0; i < kWarpLanes; ++i) {
    if ((mask >> i & 1U) != 0) joined[i] = warp.tick;
  }
  for (std::uint32_t left = mask; left != 0; left &= left - 1) {
    std::copy_n(joined, kWarpLanes, warp.seen[std::countr_zero(left)]);
  }
  ++warp.tick;
}

void access(const void* at, std::size_t bytes, Kind kind, Site site, const void* pc) {
  if (current_thread == nullptr) return;
  const Region* region = region_of(at);
  if (region == nullptr) {
    if (is_the_threads(at)) return;
    if (is_host_static(at)) return complain("access to the host's static data", site, pc);
    if (!may_touch_host()) complain("access to the host's memory", site, pc);
    return;
  }
  const std::size_t first = region->offset(at);
  if (!check_state(region->state + first, bytes, kind, site, pc) || !is_on()) return;
  const bool is_shared = current_block->is_shared(at, bytes);
  if (kind == Kind::kAtomic && !is_shared) pass_on(at);
  for (std::size_t i = first; i < first + bytes;) {
    const std::size_t next = std::min(first + bytes, (i / kWord + 1) * kWord);
    const auto mask = static_cast<std::uint8_t>(((1U << (next - i)) - 1) << (i % kWord));
    check_word(*region, i / kWord, mask, kind, is_shared, site, pc);
    i = next;
  }
}

}  // namespace checker

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
  if (region_of(at) == nullptr) return;
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
