// SPDX-License-Identifier: Apache-2.0
//
// Stage 4: second chance as the textbook tells it, with a queue instead of a hand.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>

namespace clusterkv::reference {

/// Second chance (FIFO with one reprieve). Quads of the running step are never evicted.
class SecondChance {
 public:
  explicit SecondChance(int capacity) : capacity_(capacity) {}

  void begin_step() { busy_.clear(); }
  /// Whether the quad was there. A missing one is brought in, if a place can be had.
  bool touch(int quad);
  [[nodiscard]] bool holds(int quad) const { return referenced_.contains(quad); }

 private:
  bool evict();

  int capacity_;
  std::deque<int> queue_;  ///< front: looked at next
  std::map<int, bool> referenced_;
  std::set<int> busy_;
};

}  // namespace clusterkv::reference
