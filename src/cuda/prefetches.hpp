// SPDX-License-Identifier: Apache-2.0
//
// Recalls ahead of their layers: a stream of our own, and who waits for it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/cuda/runtime.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

/// A stream that records a graph knows no events from outside, and its events are unknown there: what is
/// recorded has events of its own.
class Prefetches {
 public:
  explicit Prefetches(int num_layers)
      : done_(static_cast<std::size_t>(num_layers)),
        recorded_done_(static_cast<std::size_t>(num_layers)),
        state_(static_cast<std::size_t>(num_layers), State::kNone) {}

  /// The stream for a prefetch, which waits for what the caller's has been given.
  /// \throws StepError  if the caller's records a graph, and a prefetch outside of it may be under way
  void* begin(void* stream);
  void end(int layer);

  /// The stream waits for the layer's prefetch.
  /// \throws StepError  as begin()
  void hold(int layer, void* stream);
  /// The stream, which records no graph, waits for all of them.
  void hold_all(void* stream);
  /// Passed once all are, but those of a graph.
  [[nodiscard]] const Event& last() const { return last_; }

 private:
  enum class State : std::uint8_t { kNone, kEnqueued, kRecorded };

  SideStream side_;
  Event begun_;
  Event recorded_begun_;
  std::vector<Event> done_;           ///< [layer]
  std::vector<Event> recorded_done_;  ///< [layer]
  Event last_;
  std::vector<State> state_;  ///< [layer], since a stream waited for it
};

}  // namespace clusterkv::CLUSTERKV_DEVICE
