// SPDX-License-Identifier: Apache-2.0
//
// Any order of calls of the C API: errors allowed, crashes not. CLife says what holds.
#include "tests/fuzz/c_life.hpp"
#include "tests/fuzz/require.hpp"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  clusterkv::fuzz::CLife life({data, size});
  life.run();
  return 0;
}
