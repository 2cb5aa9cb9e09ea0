// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "tools/clusterkv/replay.hpp"

namespace clusterkv::tool {

/// Table of all rows; with `bars` also the errors drawn beside each other.
std::string format_table(const std::vector<Metrics>& rows, bool bars);

/// JSON array, one object a row.
std::string format_json(const std::vector<Metrics>& rows);

}  // namespace clusterkv::tool
