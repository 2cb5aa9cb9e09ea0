// SPDX-License-Identifier: Apache-2.0
#include "tools/clusterkv/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

namespace clusterkv::tool {

std::string bar(double share, int width) {
  static constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int eighths = static_cast<int>(std::lround(std::clamp(share, 0.0, 1.0) * width * 8));
  std::string text;
  for (int i = 0; i < eighths / 8; ++i) text += "█";
  return text + kEighths[eighths % 8];
}

ProgressLine::ProgressLine(std::string what)
    : what_(std::move(what)), terminal_(isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  if (terminal_ && shown_ >= 0) std::fputs("\r\x1b[K", stderr);
}

void ProgressLine::show(double share) {
  const int percent = static_cast<int>(100 * share);
  if (!terminal_ || percent == shown_) return;
  shown_ = percent;
  fmt::print(stderr, "\r{} {:<20} {:>3} %", what_, bar(share, 20), percent);
  std::fflush(stderr);
}

}  // namespace clusterkv::tool
