// SPDX-License-Identifier: Apache-2.0
#include "clusterkv/version.hpp"

#define CLUSTERKV_TEXT(x) #x
#define CLUSTERKV_JOIN(a, b, c) CLUSTERKV_TEXT(a) "." CLUSTERKV_TEXT(b) "." CLUSTERKV_TEXT(c)

namespace clusterkv {
inline namespace v0 {

const char* version() noexcept {
  return CLUSTERKV_JOIN(CLUSTERKV_VERSION_MAJOR, CLUSTERKV_VERSION_MINOR, CLUSTERKV_VERSION_PATCH);
}

}  // namespace v0
}  // namespace clusterkv
