// SPDX-License-Identifier: Apache-2.0
#include "tests/support/lock_count.hpp"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>

namespace {

std::atomic<bool> counting{false};
std::atomic<int> locks{0};

/// The function of this name that would be called without this file. Looking for it may lock.
template <class Function>
Function real(std::atomic<Function>& known, const char* name) {
  static thread_local bool looking = false;
  Function found = known.load();
  if (found == nullptr && !looking) {
    looking = true;
    found = reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
    known = found;
    looking = false;
  }
  return found;
}

template <class Lock>
int counted(std::atomic<int (*)(Lock*)>& known, const char* name, Lock* lock) {
  if (counting) ++locks;
  auto* const function = real(known, name);
  return function != nullptr ? function(lock) : 0;
}

}  // namespace

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CLUSTERKV_COUNT(function, Lock)                          \
  extern "C" int function(Lock* lock) noexcept {                 \
    static constinit std::atomic<int (*)(Lock*)> known{nullptr}; \
    return counted(known, #function, lock);                      \
  }
CLUSTERKV_COUNT(pthread_mutex_lock, pthread_mutex_t)
CLUSTERKV_COUNT(pthread_mutex_trylock, pthread_mutex_t)
CLUSTERKV_COUNT(pthread_rwlock_rdlock, pthread_rwlock_t)
CLUSTERKV_COUNT(pthread_rwlock_wrlock, pthread_rwlock_t)
#undef CLUSTERKV_COUNT
#endif

namespace clusterkv::testing {

void begin_counting_locks() {
  locks = 0;
  counting = true;
}

int end_counting_locks() {
  counting = false;
  return locks;
}

}  // namespace clusterkv::testing
