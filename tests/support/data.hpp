// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace clusterkv::testing {

/// The embedded trace.
std::string small_trace();

}  // namespace clusterkv::testing
