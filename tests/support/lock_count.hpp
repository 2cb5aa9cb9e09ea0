// SPDX-License-Identifier: Apache-2.0
//
// Counts what a process locks, in all its threads: stands before the C library's pthread_mutex_lock,
// pthread_mutex_trylock, pthread_rwlock_rdlock and pthread_rwlock_wrlock, which std::mutex and all others
// end in. What the allocator locks by itself is not among them. Not under a sanitizer, which stands there too.
#pragma once

namespace clusterkv::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kCountsLocks = false;
#else
inline constexpr bool kCountsLocks = true;
#endif

void begin_counting_locks();
/// Returns how many were locked since begin_counting_locks().
int end_counting_locks();

}  // namespace clusterkv::testing
