// SPDX-License-Identifier: Apache-2.0
#include "clusterkv/executor.hpp"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "src/runtime/check.hpp"
#include "src/runtime/task_board.hpp"

namespace clusterkv {
inline namespace v0 {
namespace {

using runtime::Task;
using runtime::TaskBoard;

/// How often an idle thread looks for work before it sleeps or yields: some microseconds.
constexpr int kSpins = 2000;

/// Runs a region as its leader, in parts that fit the board.
void lead(TaskBoard& board, int num_tasks, Task task, void* arg, std::atomic<int>* bell) {
  struct Part {
    Task task;
    void* arg;
    int first;
  };
  for (int first = 0; first < num_tasks; first += TaskBoard::kMaxTasks) {
    Part part{task, arg, first};
    const auto run_part = [](void* p, int index) {
      const auto* self = static_cast<Part*>(p);
      self->task(self->arg, self->first + index);
    };
    board.open(std::min(TaskBoard::kMaxTasks, num_tasks - first), run_part, &part);
    if (bell != nullptr) {
      bell->fetch_add(1, std::memory_order_release);
      bell->notify_all();
    }
    board.work();
    for (int spin = 0; !board.finished(); ++spin) {
      if (spin > kSpins) std::this_thread::yield();
    }
  }
}

class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int num_threads) : num_threads_(num_threads) {
    threads_.reserve(static_cast<std::size_t>(num_threads - 1));
    for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this] { help(); });
  }
  ~ThreadPool() override {
    stop_.store(true, std::memory_order_release);
    bell_.fetch_add(1, std::memory_order_release);
    bell_.notify_all();
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int concurrency() const noexcept override { return num_threads_; }

  void run(int num_tasks, Task task, void* arg) override {
    if (num_threads_ > 1 && num_tasks > 1) {
      lead(board_, num_tasks, task, arg, &bell_);
      return;
    }
    for (int i = 0; i < num_tasks; ++i) task(arg, i);
  }

 private:
  void help() {
    int heard = 0;
    while (!stop_.load(std::memory_order_acquire)) {
      board_.work();
      int spin = 0;
      while (bell_.load(std::memory_order_acquire) == heard && spin < kSpins) ++spin;
      bell_.wait(heard, std::memory_order_acquire);
      heard = bell_.load(std::memory_order_acquire);
    }
  }

  int num_threads_;
  TaskBoard board_;
  std::atomic<int> bell_{0};  ///< counts regions; idle threads wait for it to change
  std::atomic<bool> stop_{false};
  std::vector<std::jthread> threads_;  ///< last member: joined before the others go
};

}  // namespace

Executor::~Executor() = default;

std::unique_ptr<Executor> make_thread_pool(int num_threads) {
  if (num_threads < 0) {
    runtime::fail<ConfigError>("num_threads: {}, expected >= 0", num_threads);
  }
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::make_unique<ThreadPool>(num_threads > 0 ? num_threads : std::max(1, cores));
}

struct LentThreads::Impl {
  int num_threads;
  TaskBoard board;
  std::atomic<int> operation{0};
};

LentThreads::LentThreads(int num_threads) {
  if (num_threads < 1) runtime::fail<ConfigError>("num_threads: {}, expected >= 1", num_threads);
  impl_ = std::make_unique<Impl>();
  impl_->num_threads = num_threads;
}

LentThreads::~LentThreads() = default;

int LentThreads::concurrency() const noexcept {
  return impl_->num_threads;
}

void LentThreads::run(int num_tasks, Task task, void* arg) {
  lead(impl_->board, num_tasks, task, arg, nullptr);
}

void LentThreads::serve(int operation) noexcept {
  int spin = 0;
  while (impl_->operation.load(std::memory_order_acquire) <= operation) {
    const bool idle = impl_->board.work() == 0;
    spin = idle ? spin + 1 : 0;
    if (spin > kSpins) std::this_thread::yield();
  }
}

void LentThreads::release() noexcept {
  impl_->operation.fetch_add(1, std::memory_order_release);
}

}  // namespace v0
}  // namespace clusterkv
