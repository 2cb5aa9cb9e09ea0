// SPDX-License-Identifier: Apache-2.0
//
// Streams: what is enqueued runs later, in the order of its stream and of events, and else in any order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace simt {

using Work = std::function<void()>;

/// Runs at once where `stream` is null.
/// \throws clusterkv::CudaError  if fail_at() said so
void enqueue(void* stream, Work work);

/// The n-th launch, copy or record from here on fails, and all after it, as on a device that is lost: what
/// was enqueued does not run. With 0 none fails from here on.
void fail_at(int n);

/// From here on, the stream's work is recorded instead of enqueued; until end_capture().
void begin_capture(void* stream);
using Graph = std::vector<Work>;
Graph end_capture(void* stream);
void replay(const Graph& graph, void* stream);

}  // namespace simt
