// SPDX-License-Identifier: Apache-2.0
//
// The CUDA backend of a build without it.
#include "src/stages.hpp"

namespace clusterkv {

const BackendInfo& cuda_backend() {
  static constexpr BackendInfo kInfo{
      .missing = "backend: CUDA was not built, expected kCpu (or a build with CLUSTERKV_CUDA=ON)",
      .residency = Residency::kHost,
      .find_fault = nullptr,
      .find_needs = nullptr,
      .make = nullptr,
      .memory = nullptr};
  return kInfo;
}

}  // namespace clusterkv
