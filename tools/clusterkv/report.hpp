// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "tools/clusterkv/replay.hpp"

namespace clusterkv::tool {

/// Table of all rows; with `bars` also the errors drawn beside each other.
std::string format_table(const std::vector<Metrics>& rows, bool bars);

/// JSON array, one object a row.
std::string format_json(const std::vector<Metrics>& rows);

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
