// SPDX-License-Identifier: Apache-2.0
//
// Adds the seconds of a scope to a sum.
#pragma once

#include <chrono>

namespace clusterkv::llama_cpp {

class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  double& seconds_;
  Clock::time_point start_ = Clock::now();
};

}  // namespace clusterkv::llama_cpp
