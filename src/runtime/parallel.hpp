// SPDX-License-Identifier: Apache-2.0
//
// Cuts work into tasks of an Executor. `fn` must not throw.
#pragma once

#include <algorithm>
#include <cstdint>

#include "clusterkv/executor.hpp"

namespace clusterkv::runtime {

/// fn(i) for each i in [0, count).
template <class Fn>
void parallel_for(Executor& executor, int count, const Fn& fn) {
  if (count <= 0) return;
  const auto task = [](void* arg, int index) { (*static_cast<const Fn*>(arg))(index); };
  executor.run(count, task, const_cast<Fn*>(&fn));
}

/// fn(list, item) for each item of lists of different lengths: list i has starts[i + 1] - starts[i].
/// `starts` holds num_lists + 1 ascending numbers, the first 0.
template <class Fn>
void parallel_items(Executor& executor, const std::int32_t* starts, int num_lists, const Fn& fn) {
  parallel_for(executor, starts[num_lists], [&](int task) {
    const std::int32_t* after = std::upper_bound(starts, starts + num_lists + 1, task);
    const int list = static_cast<int>(after - starts) - 1;
    fn(list, task - starts[list]);
  });
}

}  // namespace clusterkv::runtime
