// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>

namespace clusterkv::tool {

/// Is told the share done, 0 .. 1.
using Progress = std::function<void(double)>;

/// A bar of eighths of a character.
std::string bar(double share, int width);

/// A line on standard error that is drawn over, on a terminal; nothing elsewhere. No library for
/// this is packaged for Debian 12.
class ProgressLine {
 public:
  explicit ProgressLine(std::string what);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void show(double share);

 private:
  std::string what_;
  bool terminal_;
  int shown_ = -1;
};

}  // namespace clusterkv::tool
