// SPDX-License-Identifier: Apache-2.0
//
// Runs a kernel's blocks on the CPU: every CUDA thread is a fiber that runs alone until it waits. No
// lane keeps step with another, so code that relies on that fails at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "simt/types.hpp"

namespace simt {

// ---------------------------------------------------------------------------- for the tests
/// When the bytes of an asynchronous copy arrive.
enum class CopyMode : std::uint8_t {
  kLate,    ///< when waited for: shows missing waits
  kEarly,   ///< at once: shows buffers that are written while they are read
  kRandom,  ///< either
};

struct Options {
  /// 0: threads, warps and blocks in order, copies late. Else everything is drawn from this seed.
  std::uint64_t seed = 0;
  CopyMode copies = CopyMode::kLate;  ///< with seed 0
  /// With seed 0, which stream's work runs while somebody waits: that of the stream made last, so that the
  /// streams of a cache run as early as they may beside an engine's made before it; or first: as late.
  bool oldest_stream_first = false;
  /// Share of checked memory accesses at which the thread gives way; 0 with seed 0.
  double preemption = 0.02;
  /// Kernels may touch the host's stack and heap, as lambdas do that capture by reference. No device lets them.
  bool host_memory = false;
};
/// Of the launches that follow. CLUSTERKV_SIMT_SEED in the environment overrides the seed.
void set_options(const Options& options);
/// The one in use.
std::uint64_t seed();
bool is_oldest_stream_first();
bool may_touch_host();

/// What went wrong since the last call, one line each; empty is good.
std::vector<std::string> take_reports();

/// Memory of kernels beside the heap (heap.cpp): filled with 0xff, not readable before it is written, with a guard on both sides.
void* allocate(std::size_t bytes);
void release(void* memory) noexcept;
/// The host wrote it.
void mark_written(const void* memory, std::size_t bytes);
/// A part of an allocation that no kernel may touch.
void mark_guard(const void* memory, std::size_t bytes);

// --------------------------------------------------------------------------- for device.hpp
struct Site {
  const char* file;
  int line;
};
/// Last parameters of what kernels call: the place of the call.
#define SIMT_SITE const char *site_file = __builtin_FILE(), int site_line = __builtin_LINE()
#define SIMT_GIVEN       \
  ::simt::Site {         \
    site_file, site_line \
  }

/// Of functions in headers that kernels include: their own accesses are not the kernel's.
#define SIMT_UNCHECKED __attribute__((noinline, no_sanitize("thread")))

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;
  void* stream = nullptr;
};

struct Block {
  uint3 index{};
  dim3 block_dim{};
  dim3 grid_dim{};
};

/// What the running fiber knows of itself.
struct Thread {
  uint3 index{};
  const Block* block = nullptr;
  int lane = 0;
  int warp = 0;
};
extern constinit Thread* current_thread;

/// Runs `kernel` once per thread of the grid.
void run(const LaunchConfig& config, const std::function<void()>& kernel);

void* dynamic_shared(std::size_t bytes, Site site);
void check_read(const void* from, std::size_t bytes, std::size_t alignment, Site site);
void check_write(const void* to, std::size_t bytes, std::size_t alignment, Site site);

void copy_async(void* to, const void* from, Site site);
void commit_copies();
void wait_copies(int pending);

void syncthreads(Site site);
void threadfence();

}  // namespace simt
