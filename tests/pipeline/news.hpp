// SPDX-License-Identifier: Apache-2.0
//
// The global operator new of the pipeline tests: counts, and fails where it is told to.
#pragma once

namespace clusterkv::testing {

/// A sanitizer brings its own operator new; there nothing is counted and nothing fails.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kCountsNews = false;
#else
inline constexpr bool kCountsNews = true;
#endif

void begin_counting_news();
int end_counting_news();

/// From now on the `number`-th call from 0, of any thread, throws std::bad_alloc, once.
void fail_new(int number);
/// Ends that. Whether it has failed.
bool end_failing_new();

/// Calls of operator new whose memory was not given back.
long long live_news();

}  // namespace clusterkv::testing
