// SPDX-License-Identifier: Apache-2.0
//
// Memory and clocks of a device, for benches of device ops. On the executor of tests/simt the same
// benches run too, to show that they work; their times then mean nothing.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "kernels/common/cuda/backend.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {}

namespace clusterkv::bench {

namespace on_device = clusterkv::CLUSTERKV_DEVICE;

enum class Place : std::uint8_t { kDevice, kPinned };

void* allocate(std::size_t bytes, Place place);
void release(void* memory, Place place) noexcept;
void copy(void* to, const void* from, std::size_t bytes);

/// `count` elements, the first values.size() of them given.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t count, Place place = Place::kDevice)
      : data_(static_cast<T*>(allocate(count * sizeof(T), place))), count_(count), place_(place) {}
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    copy(data_, values.data(), values.size() * sizeof(T));
  }
  Buffer(Buffer&& other) noexcept : data_(other.data_), count_(other.count_), place_(other.place_) {
    other.data_ = nullptr;
  }
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { release(data_, place_); }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] std::vector<T> to_host() const {
    std::vector<T> values(count_);
    copy(values.data(), data_, count_ * sizeof(T));
    return values;
  }
  /// Repeats `pattern` to the end.
  void fill(const std::vector<T>& pattern) {
    for (std::size_t at = 0; at < count_; at += pattern.size()) {
      copy(data_ + at, pattern.data(), std::min(pattern.size(), count_ - at) * sizeof(T));
    }
  }

 private:
  T* data_;
  std::size_t count_;
  Place place_;
};

/// bf16 bits of normal random numbers; `count` at most 4 Mi, for Buffer::fill.
std::vector<std::uint16_t> random_bf16(std::size_t count);

/// Measured once. Bytes a second: copies on the device, bytes read and written; the copy engine from
/// pinned memory.
struct Limits {
  double device;
  double link;
  double cache_bytes;
};
const Limits& limits();

/// Benches the launches of `run(stream)`, captured in a graph that runs them `repeats` times.
/// `bytes` and `operations` are those of one run().
struct Work {
  double bytes = 0;
  double link_bytes = 0;
  double operations = 0;
  int layers = 1;  ///< times are given per layer
  int tokens = 0;  ///< decoded together; gives a model's tokens a second
};
void measure(benchmark::State& state, const Work& work,
             const std::function<void(void* stream)>& run);

}  // namespace clusterkv::bench
