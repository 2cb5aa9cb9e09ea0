// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace clusterkv::testing {

/// Seeded draws, the same on every machine with this standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  int between(int low, int high) {
    return low + static_cast<int>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int>(values.size()) - 1)];
  }
  float normal() { return normal_(engine_); }
  std::vector<float> normals(std::size_t count, float scale = 1.0F) {
    std::vector<float> values(count);
    for (float& value : values) value = scale * normal();
    return values;
  }
  std::uint64_t bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

}  // namespace clusterkv::testing
