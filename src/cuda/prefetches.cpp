// SPDX-License-Identifier: Apache-2.0
#include "src/cuda/prefetches.hpp"

#include <algorithm>

#include "clusterkv/error.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

[[noreturn]] void refuse_outside() {
  throw StepError(
      "stream: records a graph, expected prefetch() and attend() of a layer both inside of it or "
      "both outside");
}

}  // namespace

void* Prefetches::begin(void* stream) {
  const bool records = is_capturing(stream);
  // All share scratch, and a graph does not wait for what is outside.
  if (records && std::find(state_.begin(), state_.end(), State::kEnqueued) != state_.end()) {
    refuse_outside();
  }
  Event& begun = records ? recorded_begun_ : begun_;
  begun.record(stream);
  begun.hold(side_.get());
  return side_.get();
}

void Prefetches::end(int layer) {
  const auto at = static_cast<std::size_t>(layer);
  if (is_capturing(side_.get())) {
    recorded_done_[at].record(side_.get());
    state_[at] = State::kRecorded;
    return;
  }
  done_[at].record(side_.get());
  last_.record(side_.get());
  state_[at] = State::kEnqueued;
}

void Prefetches::hold(int layer, void* stream) {
  const auto at = static_cast<std::size_t>(layer);
  const State state = state_[at];
  if (state == State::kNone) return;
  const bool records = is_capturing(stream);
  if (records && state == State::kEnqueued) refuse_outside();
  state_[at] = State::kNone;
  if (state == State::kEnqueued) {
    done_[at].hold(stream);
  } else if (records) {
    recorded_done_[at].hold(stream);
  }
}

void Prefetches::hold_all(void* stream) {
  last_.hold(stream);
  std::fill(state_.begin(), state_.end(), State::kNone);
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
