// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <map>
#include <new>
#include <utility>

namespace clusterkv::fuzz {

/// Stores of a life serve the next one: to map them anew would take most of the time.
class Stores {
 public:
  Stores() = default;
  ~Stores() { clear(); }
  Stores(const Stores&) = delete;
  Stores& operator=(const Stores&) = delete;

  void* take(std::size_t bytes, std::size_t alignment) {
    const auto found = free_.find({bytes, alignment});
    if (found == free_.end()) return ::operator new (bytes, std::align_val_t{alignment});
    void* data = found->second;
    free_.erase(found);
    return data;
  }
  void give_back(void* data, std::size_t bytes, std::size_t alignment) {
    free_.insert({{bytes, alignment}, data});
    if (free_.size() >= 64) clear();
  }

 private:
  void clear() {
    for (const auto& [size, old] : free_) ::operator delete (old, std::align_val_t{size.second});
    free_.clear();
  }

  std::multimap<std::pair<std::size_t, std::size_t>, void*> free_;
};

}  // namespace clusterkv::fuzz
