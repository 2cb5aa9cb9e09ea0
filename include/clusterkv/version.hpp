// SPDX-License-Identifier: Apache-2.0
#pragma once

#define CLUSTERKV_VERSION_MAJOR 0
#define CLUSTERKV_VERSION_MINOR 1
#define CLUSTERKV_VERSION_PATCH 0

namespace clusterkv {
inline namespace v0 {

/// The version of the library linked, as "major.minor.patch".
const char* version() noexcept;

}  // namespace v0
}  // namespace clusterkv
