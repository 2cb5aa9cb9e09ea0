// SPDX-License-Identifier: Apache-2.0
//
// Streams: what is enqueued runs later, in the order of its stream and of events, and else in any order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace simt {

using Work = std::function<void()>;

/// Runs at once where `stream` is null.
/// \throws clusterkv::CudaError  if fail_at() said so
void enqueue(void* stream, Work work);

/// Whether no stream has work left.
bool is_idle();

/// The n-th launch, copy or record from here on fails, and all after it, as on a device that is lost: what
/// was enqueued does not run. With 0 none fails from here on.
void fail_at(int n);

/// From here on, the stream's work is recorded instead of enqueued; until end_capture(). So is that of streams
/// that wait for an event recorded there, which the stream must have waited for at the end. Events in a graph
/// and outside of it do not know each other.
/// \throws std::runtime_error  if a stream was not waited for
void begin_capture(void* stream);
struct Capture;
using Graph = std::shared_ptr<const Capture>;
Graph end_capture(void* stream);
/// Each stream that was recorded beside the first has one of its own again.
void replay(const Graph& graph, void* stream);

}  // namespace simt
