// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace clusterkv::cuda {

/// Throws CudaError with the name and text of `status`, a cudaError_t, if it is not success.
void check(int status, const char* what);

}  // namespace clusterkv::cuda
