// SPDX-License-Identifier: Apache-2.0
#include "simt/executor.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "runtime/block_run.hpp"
#include "runtime/checker.hpp"

namespace simt {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

constinit thread_local Thread* current_thread = nullptr;
BlockRun* current_block = nullptr;

namespace {

constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::size_t kGuardBytes = 4096;
constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kMaxSharedBytes = 227 * 1024;  // of sm_90; sm_80 has 163 KiB
constexpr std::size_t kMaxReports = 50;

Options options;
std::mt19937_64 random;
std::vector<std::string> reports;

/// Stacks of all fibers of a block, each above a page that may not be touched.
std::byte* stack_top(int number) {
  static std::byte* const stacks = [] {
    constexpr std::size_t kBytes = kMaxThreads * (kStackBytes + kGuardBytes);
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    auto* first = static_cast<std::byte*>(memory);
    for (unsigned i = 0; i < kMaxThreads; ++i) {
      mprotect(first + i * (kStackBytes + kGuardBytes), kGuardBytes, PROT_NONE);
    }
    return first;
  }();
  return stacks + (static_cast<std::size_t>(number) + 1) * (kStackBytes + kGuardBytes);
}

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
  return std::uniform_real_distribution<>(0, 1)(random) < options.preemption;
}

bool draw_early_copy() {
  if (is_random() || options.copies == CopyMode::kRandom) return (random() & 1U) != 0;
  return options.copies == CopyMode::kEarly;
}

// ----------------------------------------------------------------------------------- blocks

BlockRun::BlockRun(const LaunchConfig& config, const std::function<void()>& kernel, Block block,
                   std::byte* shared, std::mt19937_64* random)
    : kernel_(kernel),
      block_(block),
      shared_(shared),
      shared_bytes_(config.shared_bytes),
      random_(random),
      fibers_(config.block.x * config.block.y * config.block.z) {
  for (std::size_t i = 0; i < fibers_.size(); ++i) {
    Fiber& fiber = fibers_[i];
    fiber.number = static_cast<int>(i);
    fiber.lane = fiber.number % 32;
    fiber.warp = fiber.number / 32;
    fiber.block = &block_;
    const auto number = static_cast<unsigned>(i);
    fiber.index = {number % config.block.x, number / config.block.x % config.block.y,
                   number / config.block.x / config.block.y};
    fiber.context = make_fcontext(stack_top(fiber.number), kStackBytes, &BlockRun::enter);
  }
  alive_ = static_cast<int>(fibers_.size());
  for (int i = alive_ - 1; i >= 0; --i) ready_.push_back(i);
}

void BlockRun::enter(transfer_t transfer) {
  BlockRun& run = *current_block;
  run.scheduler_ = transfer.fctx;
  run.kernel_();
  run.finish(run.current());
  jump_fcontext(run.scheduler_, nullptr);
}

bool BlockRun::run() {
  current_block = this;
  while (!ready_.empty()) resume(fibers_[static_cast<std::size_t>(next())]);
  current_block = nullptr;
  if (alive_ > 0) report_deadlock();
  return alive_ == 0;
}

int BlockRun::next() {
  if (random_ != nullptr) std::swap(ready_[(*random_)() % ready_.size()], ready_.back());
  const int number = ready_.back();
  ready_.pop_back();
  return number;
}

void BlockRun::resume(Fiber& fiber) {
  current_thread = &fiber;
  fiber.context = jump_fcontext(fiber.context, nullptr).fctx;
  current_thread = nullptr;
}

void BlockRun::wait() {
  scheduler_ = jump_fcontext(scheduler_, nullptr).fctx;
}

void BlockRun::give_way() {
  ready_.push_back(current().number);
  wait();
}

void BlockRun::wake(Fiber& fiber) {
  fiber.state = State::kReady;
  ready_.push_back(fiber.number);
}

void BlockRun::finish(Fiber& fiber) {
  fiber.state = State::kDone;
  --alive_;
  if (!fiber.copies.empty()) {
    report("exit with copies under way, started at " + where(fiber.copies[0].site));
  }
  if (at_barrier_ > 0) {
    for (const Fiber& other : fibers_) {
      if (other.state != State::kBarrier) continue;
      report("exit while others wait at the barrier " + where(other.site));
      break;
    }
  }
}

void BlockRun::barrier(Site site) {
  Fiber& self = current();
  self.state = State::kBarrier;
  self.site = site;
  if (++at_barrier_ < alive_) return wait();
  at_barrier_ = 0;
  checker::passed_barrier();
  for (Fiber& fiber : fibers_) {
    if (fiber.state != State::kBarrier) continue;
    if (fiber.site.line != site.line || std::strcmp(fiber.site.file, site.file) != 0) {
      report("divergent barrier: " + where(fiber.site) + " and " + where(site));
    }
    wake(fiber);
  }
  wait();
}

void BlockRun::join(unsigned mask, Collective collective, void* arguments,
                    void (*combine)(Collective, void* const*, unsigned), Site site) {
  Fiber& self = current();
  self.state = State::kCollective;
  self.site = site;
  self.collective = collective;
  self.mask = mask;
  self.arguments = arguments;
  if ((mask >> self.lane & 1U) == 0) report("mask without its caller at " + where(site));
  if (!complete(mask, self)) return wait();
  void* lanes[32] = {};
  const auto first = static_cast<std::size_t>(self.warp) * 32;
  for (std::size_t lane = 0; lane < 32 && first + lane < fibers_.size(); ++lane) {
    if ((mask >> lane & 1U) != 0) lanes[lane] = fibers_[first + lane].arguments;
  }
  combine(collective, lanes, mask);
  if (collective == Collective::kSync) checker::passed_syncwarp(self.warp);
  for (std::size_t lane = 0; lane < 32 && first + lane < fibers_.size(); ++lane) {
    if ((mask >> lane & 1U) != 0) wake(fibers_[first + lane]);
  }
  wait();
}

/// Whether all lanes of the mask wait for the same as the last one.
bool BlockRun::complete(unsigned mask, const Fiber& last) {
  const auto first = static_cast<std::size_t>(last.warp) * 32;
  for (std::size_t lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1U) == 0) continue;
    if (first + lane >= fibers_.size()) {
      report("mask names a lane that does not exist at " + where(last.site));
      return false;
    }
    const Fiber& fiber = fibers_[first + lane];
    if (fiber.state == State::kDone) {
      report("mask names a lane that has left, at " + where(last.site));
      return false;
    }
    const bool same = fiber.state == State::kCollective && fiber.mask == mask &&
                      fiber.collective == last.collective && fiber.site.line == last.site.line;
    if (!same) return false;
  }
  return true;
}

void BlockRun::report_deadlock() const {
  std::map<std::string, int> waiting;
  for (const Fiber& fiber : fibers_) {
    if (fiber.state != State::kDone) ++waiting[where(fiber.site)];
  }
  std::string what = "deadlock:";
  for (const auto& [site, count] : waiting) {
    what += fmt::format(" {} threads wait at {}", count, site);
  }
  report(what);
}

// ----------------------------------------------------------------------------------- launch

void run(const LaunchConfig& config, const std::function<void()>& kernel) {
  const unsigned threads = config.block.x * config.block.y * config.block.z;
  const unsigned blocks = config.grid.x * config.grid.y * config.grid.z;
  if (threads == 0 || threads > kMaxThreads || blocks == 0 ||
      config.shared_bytes > kMaxSharedBytes) {
    return report(fmt::format("launch: {} blocks of {} threads with {} bytes of shared memory",
                              blocks, threads, config.shared_bytes));
  }
  auto* shared = static_cast<std::byte*>(allocate(std::max<std::size_t>(config.shared_bytes, 1)));
  std::vector<unsigned> order(blocks);
  for (unsigned i = 0; i < blocks; ++i) order[i] = i;
  if (is_random()) std::shuffle(order.begin(), order.end(), random);
  checker::begin_launch();
  for (const unsigned i : order) {
    const Block block{
        {i % config.grid.x, i / config.grid.x % config.grid.y, i / config.grid.x / config.grid.y},
        config.block,
        config.grid};
    checker::poison(shared, config.shared_bytes);
    checker::begin_block();
    if (!BlockRun(config, kernel, block, shared, is_random() ? &random : nullptr).run()) break;
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
  checker::copy_arrived(copy.to, kCopyBytes);
  // Until here it could not be seen, so this is when others must be told.
  checker::access(copy.to, kCopyBytes, checker::Kind::kWrite, copy.site, nullptr);
}

}  // namespace

void copy_async(void* to, const void* from, Site site) {
  check_read(from, kCopyBytes, kCopyBytes, site);
  check_write(to, kCopyBytes, kCopyBytes, site);
  checker::copy_started(to, kCopyBytes);
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
