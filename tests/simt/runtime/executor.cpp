// SPDX-License-Identifier: Apache-2.0
#include "simt/executor.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "runtime/block_run.hpp"
#include "runtime/checker.hpp"

namespace simt {

constinit Thread* current_thread = nullptr;

namespace {

constexpr std::size_t kMaxReports = 50;

Options options;
std::mt19937_64 random;
std::uint64_t until_preemption = 0;  ///< checked accesses
std::vector<std::string> reports;

bool is_random() {
  return options.seed != 0;
}

}  // namespace

void set_options(const Options& wanted) {
  options = wanted;
  if (const char* seed = std::getenv("CLUSTERKV_SIMT_SEED")) {
    options.seed = std::strtoull(seed, nullptr, 10);
  }
  random.seed(options.seed);
  until_preemption = 0;
}

std::uint64_t seed() {
  return options.seed;
}

bool is_oldest_stream_first() {
  return options.oldest_stream_first;
}

bool may_touch_host() {
  return options.host_memory;
}

void report(const std::string& what) {
  if (reports.size() >= kMaxReports) return;
  if (std::find(reports.begin(), reports.end(), what) != reports.end()) return;
  reports.push_back(what);
  // For kernels so broken that they end the process.
  if (std::getenv("CLUSTERKV_SIMT_ECHO") != nullptr) fmt::print(stderr, "{}\n", what);
}

std::vector<std::string> take_reports() {
  return std::exchange(reports, {});
}

std::string where(Site site) {
  const char* name = std::strrchr(site.file, '/');
  return fmt::format("{}:{}", name == nullptr ? site.file : name + 1, site.line);
}

bool draw_preemption() {
  if (!is_random() || options.preemption <= 0) return false;
  if (until_preemption-- > 0) return false;
  until_preemption = std::geometric_distribution<std::uint64_t>(options.preemption)(random);
  return true;
}

bool draw_early_copy() {
  if (is_random() || options.copies == CopyMode::kRandom) return (random() & 1U) != 0;
  return options.copies == CopyMode::kEarly;
}

// ----------------------------------------------------------------------------------- launch

namespace {

/// What all supported devices take: the limits of compute capability 8.0, whose shared memory is the
/// smallest. Every block may take as much of it as one can have.
bool is_legal(const LaunchConfig& config) {
  const auto is_within = [](unsigned n, unsigned most) { return n >= 1 && n <= most; };
  const auto& [grid, block, shared_bytes, stream] = config;
  return is_within(grid.x, 0x7fffffff) && is_within(grid.y, 65535) && is_within(grid.z, 65535) &&
         is_within(block.x, kMaxThreads) && is_within(block.y, kMaxThreads) &&
         is_within(block.z, 64) && block.x * block.y * block.z <= kMaxThreads &&
         shared_bytes <= 163 * 1024;
}

std::string name_of(const dim3& size) {
  return fmt::format("{} x {} x {}", size.x, size.y, size.z);
}

void poison(std::byte* memory, std::size_t bytes) {
  std::memset(memory, 0xff, bytes);
  set_state(memory, bytes, kUnwritten);
}

}  // namespace

void run(const LaunchConfig& config, const std::function<void()>& kernel) {
  const auto& [grid, block_dim, shared_bytes, stream] = config;
  if (!is_legal(config)) {
    return report(fmt::format("launch: grid {}, block {}, {} bytes of shared memory", name_of(grid),
                              name_of(block_dim), shared_bytes));
  }
  auto* shared = static_cast<std::byte*>(allocate(std::max<std::size_t>(shared_bytes, 1)));
  const StaticShared static_shared = find_static_shared();
  std::vector<unsigned> order(std::size_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0U);
  if (is_random()) std::shuffle(order.begin(), order.end(), random);
  checker::begin_launch();
  for (const unsigned i : order) {
    const Block block{{i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y}, block_dim, grid};
    poison(shared, shared_bytes);
    poison(static_shared.base, static_shared.bytes);
    checker::begin_block();
    BlockRun block_run(config, kernel, block, shared, static_shared,
                       is_random() ? &random : nullptr);
    if (!block_run.run()) break;
  }
  release(shared);
}

void syncthreads(Site site) {
  current_block->barrier(site);
}

void threadfence() {
  current_block->current().has_fenced = true;
}

void* dynamic_shared(std::size_t bytes, Site site) {
  if (bytes > current_block->shared_bytes()) {
    report(fmt::format("shared memory: {} bytes used, {} launched with, at {}", bytes,
                       current_block->shared_bytes(), where(site)));
  }
  return current_block->shared();
}

// ---------------------------------------------------------------------- asynchronous copies

namespace {

constexpr std::size_t kCopyBytes = 16;

void arrive(const Copy& copy) {
  std::memcpy(copy.to, copy.from, kCopyBytes);
  set_state(copy.to, kCopyBytes, kWritten);
  // Until here it could not be seen, so this is when others must be told.
  checker::access(copy.to, kCopyBytes, checker::Kind::kWrite, copy.site, nullptr);
}

}  // namespace

void copy_async(void* to, const void* from, Site site) {
  check_read(from, kCopyBytes, kCopyBytes, site);
  check_write(to, kCopyBytes, kCopyBytes, site);
  if (!current_block->is_shared(to, kCopyBytes)) {
    report("cp.async to outside shared memory at " + where(site));
  }
  set_state(to, kCopyBytes, kInFlight);  // not to be read before it arrives
  Fiber& self = current_block->current();
  const Copy copy{to, from, self.group, site};
  if (draw_early_copy()) std::memcpy(to, from, kCopyBytes);
  self.copies.push_back(copy);
}

void commit_copies() {
  ++current_block->current().group;
}

void wait_copies(int pending) {
  Fiber& self = current_block->current();
  std::erase_if(self.copies, [&](const Copy& copy) {
    const bool is_done = copy.group < self.group - pending;
    if (is_done) arrive(copy);
    return is_done;
  });
}

}  // namespace simt
