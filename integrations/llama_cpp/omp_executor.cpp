// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/omp_executor.hpp"

namespace clusterkv::llama_cpp {

void OmpExecutor::run(int num_tasks, void (*task)(void* arg, int index), void* arg) {
  if (num_threads_ == 1 || num_tasks == 1) {
    for (int i = 0; i < num_tasks; ++i) task(arg, i);
    return;
  }
  // Always all threads: libgomp ends the threads that a smaller team has no use for.
#pragma omp parallel for num_threads(num_threads_) schedule(dynamic, 1)
  for (int i = 0; i < num_tasks; ++i) task(arg, i);
}

}  // namespace clusterkv::llama_cpp
