// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cuda/check.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "clusterkv/error.hpp"

namespace clusterkv::cuda {

void check(int status, const char* what) {
  const auto error = static_cast<cudaError_t>(status);
  if (error == cudaSuccess) return;
  throw CudaError(
      fmt::format("{}: {} ({})", what, cudaGetErrorName(error), cudaGetErrorString(error)));
}

}  // namespace clusterkv::cuda
