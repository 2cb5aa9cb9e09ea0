// SPDX-License-Identifier: Apache-2.0
//
// Runs a suite on the instruction set that CLUSTERKV_CPU names. Exit code 77, which ctest counts as
// skipped: the CPU lacks it, or the run without CLUSTERKV_CPU uses it.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/common/cpu/isa.hpp"

namespace {

bool is_a_run_of_its_own(const char* wanted) {
  using namespace clusterkv;
  const Isa* best = nullptr;
  for (const Isa& isa : kIsas) best = is_offered(isa) ? &isa : best;
  for (const Isa isa : kIsas) {
    if (std::strcmp(wanted, name_of(isa)) == 0) return is_offered(isa) && isa != *best;
  }
  return true;  // an unknown name: the suite shall fail
}

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const char* wanted = std::getenv("CLUSTERKV_CPU");
  if (wanted != nullptr && !is_a_run_of_its_own(wanted)) {
    std::printf("%s: not offered, or the usual one\n", wanted);
    return 77;
  }
  return RUN_ALL_TESTS();
}
