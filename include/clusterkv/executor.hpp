// SPDX-License-Identifier: Apache-2.0
//
// Whose threads do the work of the CPU backend. An engine hands in its own, or takes our small pool.
#pragma once

#include <memory>

namespace clusterkv {
inline namespace v0 {

/// Runs the tasks of one parallel region.
///
/// Tasks never wait for each other, never throw and never call the executor again, so any number
/// of threads (one is enough) in any order gives the same result, bit for bit.
class Executor {
 public:
  virtual ~Executor();

  /// How many tasks may run at once; >= 1. Only the cut of the work depends on it, never a result.
  [[nodiscard]] virtual int concurrency() const noexcept = 0;

  /// Calls task(arg, i) once for each i in [0, num_tasks) and returns when all have returned.
  virtual void run(int num_tasks, void (*task)(void* arg, int index), void* arg) = 0;

 protected:
  Executor() = default;
  Executor(const Executor&) = default;
  Executor& operator=(const Executor&) = default;
};

/// A pool of `num_threads` threads, the caller of run() being one of them. Idle threads spin for
/// some microseconds, then sleep. run() may be called by one thread at a time.
/// \param num_threads  0: as many as the machine has
/// \throws ConfigError  if num_threads < 0
std::unique_ptr<Executor> make_thread_pool(int num_threads = 0);

/// Borrows engine threads that are all inside one operation already: one leads (it calls the cache
/// with this executor in its Stream, then release()), the others call serve() meanwhile.
///
/// A helper that comes late or never costs only speed: the leader takes every task that nobody else
/// took. One operation: leader { attend(...); release(); }, helper { serve(); }. After release()
/// the object serves the next operation; all helpers must have left serve() before it begins.
class LentThreads final : public Executor {
 public:
  /// \param num_threads  leader and helpers together; >= 1
  /// \throws ConfigError  if num_threads < 1
  explicit LentThreads(int num_threads);
  ~LentThreads() override;
  LentThreads(const LentThreads&) = delete;
  LentThreads& operator=(const LentThreads&) = delete;

  [[nodiscard]] int concurrency() const noexcept override;
  void run(int num_tasks, void (*task)(void* arg, int index), void* arg) override;

  /// Helper: takes tasks until the leader calls release(). `operation` counts the leader's
  /// operations from 0; a helper of an operation that is over returns at once.
  void serve(int operation) noexcept;

  /// Leader: ends the operation; every serve() of it returns.
  void release() noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace v0
}  // namespace clusterkv
