// SPDX-License-Identifier: Apache-2.0
//
// Work for the threads that ggml has already: an OpenMP region of the same size, begun by the thread
// that begins ggml's own, runs on the same team.
#pragma once

#include <algorithm>

#include "clusterkv/executor.hpp"

namespace clusterkv::llama_cpp {

class OmpExecutor final : public Executor {
 public:
  void set_num_threads(int num_threads) noexcept { num_threads_ = std::max(1, num_threads); }
  [[nodiscard]] int concurrency() const noexcept override { return num_threads_; }
  void run(int num_tasks, void (*task)(void* arg, int index), void* arg) override;

 private:
  int num_threads_ = 1;
};

}  // namespace clusterkv::llama_cpp
