// SPDX-License-Identifier: Apache-2.0
//
// Hands the tasks of one parallel region after the other to any number of threads.
#pragma once

#include <atomic>
#include <cstdint>

namespace clusterkv::runtime {

using Task = void (*)(void* arg, int index);

/// One leader publishes regions; it and any helpers take tasks until none is left. A helper that
/// comes too late finds nothing to take.
///
/// Invariant: region, number of tasks and next task are one atomic word, so taking a task proves
/// that the region is still the one whose function was read: the function changes only while no task
/// can be taken.
class TaskBoard {
 public:
  static constexpr int kMaxTasks = (1 << 20) - 1;

  /// Leader: opens a region of at most kMaxTasks tasks. The one before must be finished.
  void open(int num_tasks, Task task, void* arg) {
    task_.store(task, std::memory_order_relaxed);
    arg_.store(arg, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    num_tasks_ = num_tasks;
    const std::uint64_t region = (state_.load(std::memory_order_relaxed) >> 40) + 1;
    state_.store((region << 40) | (static_cast<std::uint64_t>(num_tasks) << 20),
                 std::memory_order_release);
  }

  /// Takes and runs tasks until there is none to take. Returns how many.
  int work() {
    int taken = 0;
    std::uint64_t state = state_.load(std::memory_order_acquire);
    while (next_of(state) < count_of(state)) {
      const Task task = task_.load(std::memory_order_relaxed);
      void* arg = arg_.load(std::memory_order_relaxed);
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel,
                                        std::memory_order_acquire)) {
        continue;
      }
      task(arg, next_of(state));
      done_.fetch_add(1, std::memory_order_release);
      ++taken;
      state = state_.load(std::memory_order_acquire);
    }
    return taken;
  }

  /// Leader, after work(): whether all tasks have returned.
  [[nodiscard]] bool finished() const {
    return done_.load(std::memory_order_acquire) == num_tasks_;
  }

 private:
  static int count_of(std::uint64_t state) { return static_cast<int>((state >> 20) & kMaxTasks); }
  static int next_of(std::uint64_t state) { return static_cast<int>(state & kMaxTasks); }

  std::atomic<std::uint64_t> state_{0};  ///< region (24 bits), number of tasks (20), next task (20)
  std::atomic<Task> task_{nullptr};
  std::atomic<void*> arg_{nullptr};
  alignas(64) std::atomic<int> done_{0};
  int num_tasks_ = 0;
};

}  // namespace clusterkv::runtime
