// SPDX-License-Identifier: Apache-2.0
#include "src/plan.hpp"

namespace clusterkv {
inline namespace v0 {

DecodePlan::DecodePlan() noexcept = default;
DecodePlan::~DecodePlan() = default;
DecodePlan::DecodePlan(DecodePlan&&) noexcept = default;
DecodePlan& DecodePlan::operator=(DecodePlan&&) noexcept = default;

int DecodePlan::num_rows() const noexcept {
  return impl ? static_cast<int>(impl->rows.size()) : 0;
}
int DecodePlan::num_new_tokens() const noexcept {
  return impl ? impl->num_new_tokens : 0;
}
int DecodePlan::num_query_tokens() const noexcept {
  return impl ? impl->num_query_tokens : 0;
}

}  // namespace v0
}  // namespace clusterkv
