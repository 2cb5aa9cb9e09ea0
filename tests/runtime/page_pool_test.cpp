// SPDX-License-Identifier: Apache-2.0
#include "src/runtime/page_pool.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

namespace clusterkv::runtime {
namespace {

TEST(PagePool, TakesTheLowestFreePage) {
  PagePool pool(200);
  for (std::uint32_t page = 0; page < 200; ++page) ASSERT_EQ(pool.take(), page);
  EXPECT_EQ(pool.num_free(), 0);
  for (const std::uint32_t page : {150U, 3U, 64U}) pool.give_back(page);
  EXPECT_EQ(pool.take(), 3U);
  EXPECT_EQ(pool.take(), 64U);
  EXPECT_EQ(pool.take(), 150U);
}

TEST(PagePool, NeverGivesAPageTwice) {
  PagePool pool(130);
  std::set<std::uint32_t> held;
  for (int round = 0; round < 1000; ++round) {
    if (pool.num_free() > 0 && round % 3 != 2) {
      ASSERT_TRUE(held.insert(pool.take()).second);
    } else {
      pool.give_back(*held.begin());
      held.erase(held.begin());
    }
    ASSERT_EQ(pool.num_free() + static_cast<std::int64_t>(held.size()), 130);
  }
}

TEST(PagePool, SaysWhichPagesTheNextTakesGive) {
  PagePool pool(130);
  for (int i = 0; i < 128; ++i) pool.take();
  for (const std::uint32_t page : {100U, 5U, 63U}) pool.give_back(page);
  for (const std::int64_t count : {0, 2, 4, 5, 200}) {
    std::vector<std::uint32_t> pages;
    pool.for_each_free(count, [&](std::uint32_t page) { pages.push_back(page); });
    std::vector<std::uint32_t> wanted = {5, 63, 100, 128, 129};
    wanted.resize(static_cast<std::size_t>(std::min<std::int64_t>(count, 5)));
    EXPECT_EQ(pages, wanted);
  }
}

TEST(PagePool, APageIsFreeWhenItsLastOwnerHasGivenItBack) {
  PagePool pool(3);
  const std::uint32_t page = pool.take();
  EXPECT_FALSE(pool.is_shared(page));
  pool.share(page);
  pool.share(page);
  EXPECT_EQ(pool.num_held(), 1);
  EXPECT_FALSE(pool.give_back(page));
  EXPECT_TRUE(pool.is_shared(page));
  EXPECT_FALSE(pool.give_back(page));
  EXPECT_FALSE(pool.is_shared(page));
  EXPECT_EQ(pool.take(), 1U) << "still held";
  EXPECT_TRUE(pool.give_back(page));
  EXPECT_EQ(pool.take(), page);
  EXPECT_FALSE(pool.is_shared(page)) << "a new life";
}

}  // namespace
}  // namespace clusterkv::runtime
