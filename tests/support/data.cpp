// SPDX-License-Identifier: Apache-2.0
#include "tests/support/data.hpp"

#include <cstdlib>

namespace clusterkv::testing {

std::string small_trace() {
  const char* moved = std::getenv("CLUSTERKV_DATA_DIR");  // of a program that was copied elsewhere
  const std::string folder = moved != nullptr ? moved : CLUSTERKV_DATA_DIR;
  return folder + "/smollm2-135m-genesis-4k-layer9.safetensors";
}

}  // namespace clusterkv::testing
