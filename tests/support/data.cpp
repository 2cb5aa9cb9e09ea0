// SPDX-License-Identifier: Apache-2.0
#include "tests/support/data.hpp"

namespace clusterkv::testing {

std::string small_trace() {
  return CLUSTERKV_DATA_DIR "/smollm2-135m-genesis-4k-layer9.safetensors";
}

}  // namespace clusterkv::testing
