// SPDX-License-Identifier: Apache-2.0
//
// Caches and selectors on the CUDA backend: on a device, or on the stand-in for its runtime and the
// executor.
#pragma once

#include "kernels/common/cuda/runtime.hpp"
#include "tests/support/cache_fixture.hpp"
#include "tests/support/device.hpp"

namespace clusterkv::testing {

/// Two layers, the first of them dense. A hybrid cache has slots, and one page of rows beside them.
inline CacheConfig device_config(Residency residency = Residency::kHost) {
  CacheConfig config = small_config(small_model(2, 4, 2, 64));
  config.model.kv_dtype = DType::kF16;
  config.store.residency = residency;
  if (residency == Residency::kHybrid) config.store.device_bytes = 440'000;
  config.select.dense_layers = 1;
  config.cluster.window_tokens = 12;
  return config;
}

/// Memory that host and device read and write by the same address.
class PinnedBytes {
 public:
  explicit PinnedBytes(std::size_t bytes)
      : bytes_(bytes), data_(on_device::device_memory().allocate(bytes, 64, {Device::kPinned})) {}
  ~PinnedBytes() { on_device::device_memory().deallocate(data_, bytes_, 64, {Device::kPinned}); }
  PinnedBytes(const PinnedBytes&) = delete;
  PinnedBytes& operator=(const PinnedBytes&) = delete;
  [[nodiscard]] void* data() const { return data_; }

 private:
  std::size_t bytes_;
  void* data_;
};

/// A cache or selector on the device with a stream of its own.
template <class Cache>
struct OnDevice {
  explicit OnDevice(const CacheConfig& config, const PlanLimits& limits = {4, 1024, 0},
                    MemoryResource& memory = on_device::device_memory())
      : driver(config, limits, {.backend = Backend::kCuda, .memory = &memory},
               {{Backend::kCuda, stream.get(), nullptr}, on_device::wait_for}) {}

  /// The lists of a selection, which lie in device memory.
  Choice choice(Selection selection) {
    const TensorView& ids = selection.cluster_ids;
    const auto bytes =
        static_cast<std::size_t>(ids.shape[0] * ids.stride[0]) * sizeof(std::int32_t);
    const PinnedBytes copies[2] = {PinnedBytes(bytes), PinnedBytes(bytes)};
    on_device::copy_async(copies[0].data(), selection.cluster_ids.data, bytes, stream.get());
    on_device::copy_async(copies[1].data(), selection.row_counts.data, bytes, stream.get());
    on_device::wait_for(stream.get());
    selection.cluster_ids.data = copies[0].data();
    selection.row_counts.data = copies[1].data();
    return copy_choice(selection);
  }

  on_device::SideStream stream;
  Driver<Cache> driver;
};

// ----------------------------------------------------------------------------- lives of caches

using DeviceCache = OnDevice<ClusterKVCache>;

inline Driver<ClusterKVCache> host_cache(const CacheConfig& config) {
  return Driver<ClusterKVCache>(config);
}

using Outputs = std::vector<std::vector<Output>>;

/// A prompt, and steps until a window was clustered and read.
inline Outputs live(Driver<ClusterKVCache>& driver) {
  const SequenceId id = driver.add(7);
  driver.prefill(id, 150, 80);
  Outputs outputs;
  for (int i = 0; i < 16; ++i) outputs.push_back(driver.decode(id));
  return outputs;
}

inline double mean_difference(const Outputs& a, const Outputs& b) {
  double sum = 0;
  std::size_t count = 0;
  for (std::size_t step = 0; step < a.size(); ++step) {
    for (std::size_t layer = 0; layer < a[step].size(); ++layer, ++count) {
      sum += relative_difference(a[step][layer].out, b[step][layer].out);
    }
  }
  return sum / static_cast<double>(count);
}

inline bool all_same_bits(const Outputs& a, const Outputs& b) {
  for (std::size_t step = 0; step < a.size(); ++step) {
    if (!same_bits(a[step], b[step])) return false;
  }
  return a.size() == b.size();
}

}  // namespace clusterkv::testing
