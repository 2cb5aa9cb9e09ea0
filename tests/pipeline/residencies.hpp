// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "clusterkv/config.hpp"

namespace clusterkv::testing {

inline std::string name_of(const ::testing::TestParamInfo<Residency>& residency) {
  return residency.param == Residency::kHost     ? "Host"
         : residency.param == Residency::kHybrid ? "Hybrid"
                                                 : "Device";
}
inline const auto kResidencies =
    ::testing::Values(Residency::kDevice, Residency::kHost, Residency::kHybrid);

}  // namespace clusterkv::testing
