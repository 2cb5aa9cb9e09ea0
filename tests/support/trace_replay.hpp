// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

namespace clusterkv::testing {

/// The embedded trace.
std::string small_trace();
/// The 8k trace, where it is at hand: in the folder CLUSTERKV_TRACES_DIR names, or beside the
/// repository.
std::optional<std::string> large_trace();

}  // namespace clusterkv::testing
