// SPDX-License-Identifier: Apache-2.0
//
// One block while it runs.
#pragma once

#include <boost/context/detail/fcontext.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "runtime/memory.hpp"
#include "simt/executor.hpp"

namespace simt {

constexpr int kWarpLanes = 32;
constexpr int kMaxThreads = 1024;

/// What a lane of a warp waits for together with others.
enum class Collective : std::uint8_t {
  kSync,
  kShuffle,
  kBallot,
  kMatch,
  kLdmatrix,
  kMovmatrix,
  kMmaF16,
  kMmaBF16,
  kMmaS8,
};

struct Copy {
  void* to;
  const void* from;
  int group;
  Site site;
};

enum class State : std::uint8_t { kReady, kBarrier, kCollective, kDone };

struct Fiber : Thread {
  boost::context::detail::fcontext_t context{};
  State state = State::kReady;
  Site site{};
  // What it waits for, while kCollective.
  Collective collective{};
  unsigned mask = 0;
  void* arguments = nullptr;
  std::vector<Copy> copies;  ///< under way
  int group = 0;             ///< committed groups
  bool has_fenced = false;
  int number = 0;  ///< in the block
};

/// Of any fiber: a kernel's local memory.
bool is_on_stack(const void* at);

class BlockRun {
 public:
  BlockRun(const LaunchConfig& config, const std::function<void()>& kernel, Block block,
           std::byte* shared, const StaticShared& static_shared, std::mt19937_64* random);

  /// False if the launch must end: the block cannot go on.
  bool run();

  /// The running fiber gives way until it is woken.
  void wait();
  /// The running fiber gives way and stays ready.
  void give_way();
  void barrier(Site site);
  /// Waits for the lanes of `mask`, whose arguments `combine` then gets, by lane.
  void join(unsigned mask, Collective collective, void* arguments,
            void (*combine)(Collective, void* const* lanes, unsigned mask), Site site);

  [[nodiscard]] Fiber& current() { return *static_cast<Fiber*>(current_thread); }
  [[nodiscard]] std::byte* shared() const { return shared_; }
  [[nodiscard]] std::size_t shared_bytes() const { return shared_bytes_; }
  /// Dynamic or static.
  [[nodiscard]] bool is_shared(const void* at, std::size_t bytes) const {
    const auto* byte = static_cast<const std::byte*>(at);
    const auto lies_in = [&](const std::byte* base, std::size_t size) {
      return byte >= base && byte + bytes <= base + size;
    };
    return lies_in(shared_, shared_bytes_) || lies_in(static_shared_.base, static_shared_.bytes);
  }
  [[nodiscard]] const Block& block() const { return block_; }
  [[nodiscard]] const std::function<void()>& kernel() const { return kernel_; }

 private:
  static void enter(boost::context::detail::transfer_t transfer);
  void resume(Fiber& fiber);
  void wake(Fiber& fiber);
  void finish(Fiber& fiber);
  bool complete(unsigned mask, const Fiber& last);
  void report_deadlock() const;
  int next();

  std::function<void()> kernel_;
  Block block_;
  std::byte* shared_;
  std::size_t shared_bytes_;
  StaticShared static_shared_;
  std::mt19937_64* random_;  ///< null: in order
  std::vector<Fiber> fibers_;
  std::vector<int> ready_;
  // By warp, masks of lanes: those that have not left, and those in State::kCollective.
  std::vector<unsigned> there_;
  std::vector<unsigned> waiting_;
  boost::context::detail::fcontext_t scheduler_{};
  int alive_ = 0;
  int at_barrier_ = 0;
};

/// The block that runs; null between blocks.
extern BlockRun* current_block;

void report(const std::string& what);
std::string where(Site site);

/// Drawn in random mode with Options::preemption.
bool draw_preemption();
/// Whether the copies of the next cp.async arrive at once.
bool draw_early_copy();

}  // namespace simt
