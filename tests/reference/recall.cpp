// SPDX-License-Identifier: Apache-2.0
#include "tests/reference/recall.hpp"

namespace clusterkv::reference {

bool SecondChance::touch(int quad) {
  const auto found = referenced_.find(quad);
  if (found != referenced_.end()) {
    found->second = true;
    busy_.insert(quad);
    return true;
  }
  if (static_cast<int>(queue_.size()) == capacity_ && !evict()) return false;
  queue_.push_back(quad);
  referenced_[quad] = false;
  busy_.insert(quad);
  return false;
}

bool SecondChance::evict() {
  // Two rounds: the first may only take reprieves away.
  for (int looked = 0; looked < 2 * capacity_; ++looked) {
    const int quad = queue_.front();
    queue_.pop_front();
    if (!busy_.contains(quad) && !referenced_[quad]) {
      referenced_.erase(quad);
      return true;
    }
    if (!busy_.contains(quad)) referenced_[quad] = false;
    queue_.push_back(quad);
  }
  return false;
}

}  // namespace clusterkv::reference
