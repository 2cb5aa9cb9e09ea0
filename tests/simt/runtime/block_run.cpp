// SPDX-License-Identifier: Apache-2.0
#include "runtime/block_run.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>

#include "runtime/checker.hpp"

namespace simt {

using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

BlockRun* current_block = nullptr;

namespace {

constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::size_t kGuardBytes = 4096;
/// Between the tops of neighbours' stacks, so that a warp's do not all compete for the same cache sets.
constexpr std::size_t kStagger = 9 * 64;

constexpr std::size_t kStacksBytes = kMaxThreads * (kStackBytes + kGuardBytes);

/// Stacks of all fibers of a block, each above a page that may not be touched.
std::byte* stacks() {
  static std::byte* const all = [] {
    void* memory = mmap(nullptr, kStacksBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    auto* first = static_cast<std::byte*>(memory);
    for (std::size_t i = 0; i < kMaxThreads; ++i) {
      mprotect(first + i * (kStackBytes + kGuardBytes), kGuardBytes, PROT_NONE);
    }
    return first;
  }();
  return all;
}

std::byte* stack_top(int number) {
  const auto index = static_cast<std::size_t>(number);
  return stacks() + (index + 1) * (kStackBytes + kGuardBytes) - index % kWarpLanes * kStagger;
}

}  // namespace

bool is_on_stack(const void* at) {
  return at >= stacks() && at < stacks() + kStacksBytes;
}

BlockRun::BlockRun(const LaunchConfig& config, const std::function<void()>& kernel, Block block,
                   std::byte* shared, const StaticShared& static_shared, std::mt19937_64* random)
    : kernel_(kernel),
      block_(block),
      shared_(shared),
      shared_bytes_(config.shared_bytes),
      static_shared_(static_shared),
      random_(random),
      fibers_(config.block.x * config.block.y * config.block.z),
      there_((fibers_.size() + kWarpLanes - 1) / kWarpLanes),
      waiting_(there_.size()) {
  for (std::size_t i = 0; i < fibers_.size(); ++i) {
    Fiber& fiber = fibers_[i];
    fiber.number = static_cast<int>(i);
    fiber.lane = fiber.number % 32;
    fiber.warp = fiber.number / 32;
    fiber.block = &block_;
    there_[i / kWarpLanes] |= 1U << fiber.lane;
    const auto number = static_cast<unsigned>(i);
    fiber.index = {number % config.block.x, number / config.block.x % config.block.y,
                   number / config.block.x / config.block.y};
    fiber.context = make_fcontext(stack_top(fiber.number), kStackBytes - kWarpLanes * kStagger,
                                  &BlockRun::enter);
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
  there_[static_cast<std::size_t>(fiber.warp)] &= ~(1U << fiber.lane);
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
  unsigned& waiting = waiting_[static_cast<std::size_t>(self.warp)];
  waiting |= 1U << self.lane;
  if ((mask >> self.lane & 1U) == 0) report("mask without its caller at " + where(site));
  if (!complete(mask, self)) return wait();
  waiting &= ~mask;
  void* lanes[32] = {};
  const auto first = static_cast<std::size_t>(self.warp) * 32;
  for (std::size_t lane = 0; lane < 32 && first + lane < fibers_.size(); ++lane) {
    if ((mask >> lane & 1U) != 0) lanes[lane] = fibers_[first + lane].arguments;
  }
  combine(collective, lanes, mask);
  if (collective == Collective::kSync) checker::passed_syncwarp(self.warp, mask);
  for (std::size_t lane = 0; lane < 32 && first + lane < fibers_.size(); ++lane) {
    if ((mask >> lane & 1U) != 0) wake(fibers_[first + lane]);
  }
  wait();
}

/// Whether all lanes of the mask wait for the same as the last one.
bool BlockRun::complete(unsigned mask, const Fiber& last) {
  const auto warp = static_cast<std::size_t>(last.warp);
  if ((mask & ~there_[warp]) == 0 && (mask & ~waiting_[warp]) != 0) return false;
  const std::size_t first = warp * 32;
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

}  // namespace simt
