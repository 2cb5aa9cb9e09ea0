// SPDX-License-Identifier: Apache-2.0
//
// What the library asks of CUDA's runtime beside launches, without its headers: memory, copies in stream
// order, events. tests/simt has a stand-in for each. A stream is a cudaStream_t.
#pragma once

#include <cstddef>

#include "clusterkv/memory.hpp"
#include "kernels/common/cuda/backend.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// Why there is nothing to run on, a static string; null if there is.
const char* find_device_fault() noexcept;

/// Device memory, and pinned host memory that the device reads and writes by the same address.
MemoryResource& device_memory() noexcept;

/// Both addresses may be of either memory, or of pinned memory.
void copy_async(void* to, const void* from, std::size_t bytes, void* stream);
void fill_async(void* to, int byte, std::size_t bytes, void* stream);

/// The host waits for all of the stream's work, or for that of all streams.
void wait_for(void* stream);
void wait_for_all();

/// Whether the stream records a graph: its work runs later, any number of times.
bool is_capturing(void* stream);

/// A stream of our own, that no other waits for by itself.
class SideStream {
 public:
  SideStream();
  ~SideStream();
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;
  [[nodiscard]] void* get() const { return stream_; }

 private:
  void* stream_ = nullptr;
};

/// A point in a stream. Until it is recorded it counts as passed.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(void* stream);
  void hold(void* stream) const;  ///< what the stream does next waits for the event
  void wait() const;              ///< the host waits

 private:
  void* event_ = nullptr;
};

}  // namespace clusterkv::CLUSTERKV_DEVICE
