// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "src/page_pools.hpp"

namespace clusterkv {
namespace {

using Ranges = std::vector<std::pair<std::uint32_t, std::uint32_t>>;

Ranges ranges_of(const StalePages& stale) {
  Ranges ranges;
  for (const StaleQuads& range : stale.ranges()) ranges.emplace_back(range.first, range.count);
  return ranges;
}

TEST(StalePages, NameEachPageOnceFromItsFirstQuadOn) {
  StalePages stale(4);
  for (const std::uint32_t quad : {130U, 5U, 140U, 128U, 63U, 129U}) stale.add(quad);
  EXPECT_EQ(ranges_of(stale), (Ranges{{128, 64}, {5, 59}}));
}

TEST(StalePages, AreForgottenWhenCleared) {
  StalePages stale(2);
  for (int step = 0; step < 3; ++step) {
    stale.add(100);
    stale.add(static_cast<std::uint32_t>(20 + step));
    EXPECT_EQ(ranges_of(stale),
              (Ranges{{100, 28}, {20U + std::uint32_t(step), 44U - std::uint32_t(step)}}));
    stale.clear();
    EXPECT_TRUE(stale.ranges().empty());
  }
}

}  // namespace
}  // namespace clusterkv
