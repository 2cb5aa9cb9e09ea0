// SPDX-License-Identifier: Apache-2.0
#include "src/recall/slot_pool.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tests/support/random.hpp"

namespace clusterkv::recall {
namespace {

/// A pool with its directory and room for copies.
struct Pool {
  Pool(int quads, int slots)
      : directory(static_cast<std::size_t>(quads)), pool(directory.data(), quads, slots) {}

  RecallPlan resolve(const std::vector<std::uint32_t>& rows, std::uint32_t plan_number,
                     std::uint32_t retain_from = 0, int max_transfers = kNoLimit) {
    copies.resize(rows.size());
    RecallPlan plan{.copies = copies.data()};
    const auto count = static_cast<std::int32_t>(rows.size());
    pool.look_up({rows.data(), &count, 1, count, max_transfers}, plan_number, retain_from, plan);
    left.clear();
    for (const std::uint32_t row : rows) {
      if (pool.is_left_out(row / 4)) left.insert(row / 4);
    }
    pool.give_slots(plan_number, plan);
    return plan;
  }

  std::vector<std::uint32_t> directory;
  std::vector<QuadCopy> copies;
  std::set<std::uint32_t> left;
  SlotPool pool;
};

TEST(SlotPool, RowsOfOneQuadAreOneLookUp) {
  Pool p(10, 4);
  const RecallPlan plan = p.resolve({4, 5, 6, 7, 8}, 1);
  EXPECT_EQ(plan.misses, 2);
  EXPECT_EQ(plan.num_copies, 2);
  EXPECT_EQ(p.copies[0].quad, 1U);
  EXPECT_EQ(p.copies[1].quad, 2U);
  EXPECT_EQ(p.resolve({5, 9}, 2).hits, 2);
}

TEST(SlotPool, NearRowsAreNeitherLookedUpNorCounted) {
  Pool p(10, 4);
  const std::vector<std::uint32_t> rows = {20, 5, 7, 8, 6};
  const std::int32_t count = 5;
  p.copies.resize(rows.size());
  RecallPlan plan{.copies = p.copies.data()};
  p.pool.look_up({rows.data(), &count, 1, count, kNoLimit, 8}, 1, 0, plan);
  p.pool.give_slots(1, plan);
  EXPECT_EQ(plan.misses, 2) << "of rows 20 and 8";
  EXPECT_EQ(p.directory[1], kNoSlot);
  EXPECT_NE(p.directory[2], kNoSlot);
}

TEST(SlotPool, QuadsWithoutASlotAreReadInPlace) {
  Pool p(10, 2);
  const RecallPlan plan = p.resolve({0, 4, 8, 12}, 1);
  EXPECT_EQ(plan.misses, 2);
  EXPECT_EQ(plan.in_place, 2);
  EXPECT_EQ(p.directory[3], kNoSlot);
}

TEST(SlotPool, SecondChanceKeepsWhatWasHit) {
  Pool p(10, 2);
  p.resolve({0, 4}, 1);
  p.resolve({0}, 2);  // quad 0 was hit, quad 1 was not
  p.resolve({8}, 3);
  EXPECT_NE(p.directory[0], kNoSlot);
  EXPECT_EQ(p.directory[1], kNoSlot);
}

TEST(SlotPool, HitsOfAStepAreSafeFromItsMisses) {
  Pool p(10, 2);
  p.resolve({0, 4}, 1);
  // Quad 2 misses before quad 1 is looked up; quad 1 must not be its victim.
  const RecallPlan plan = p.resolve({8, 4}, 2);
  EXPECT_EQ(plan.hits, 1);
  EXPECT_EQ(plan.misses, 1);
  EXPECT_NE(p.directory[1], kNoSlot);
}

TEST(SlotPool, QuadsNotUsedSinceTheRetainFloorAreCopiedAgain) {
  Pool p(10, 4);
  p.resolve({0}, 1);
  p.resolve({4}, 2);
  const RecallPlan plan = p.resolve({0, 4}, 3, /*retain_from=*/2);
  EXPECT_EQ(plan.hits, 1);
  EXPECT_EQ(plan.misses, 1);
}

TEST(SlotPool, DroppedQuadsMiss) {
  Pool p(10, 4);
  p.resolve({0, 4}, 1);
  p.pool.drop(0, 1);
  const RecallPlan plan = p.resolve({0, 4}, 2);
  EXPECT_EQ(plan.hits, 1);
  EXPECT_EQ(plan.misses, 1);
}

TEST(SlotPool, PastTheLimitQuadsAreLeftAndTheFirstOnesAreBrought) {
  Pool p(10, 8);
  const RecallPlan plan = p.resolve({0, 4, 8, 12, 16, 9}, 1, 0, 2);
  EXPECT_EQ(plan.misses, 2);
  EXPECT_EQ(plan.num_copies, 2);
  EXPECT_EQ(p.left, (std::set<std::uint32_t>{2, 3, 4}));
  for (const std::uint32_t quad : {2U, 3U, 4U}) EXPECT_EQ(p.directory[quad], kNoSlot);
  const RecallPlan next = p.resolve({0, 4, 8, 12, 16}, 2, 0, 2);
  EXPECT_EQ(next.hits, 2);
  EXPECT_EQ(next.misses, 2);
  EXPECT_EQ(p.left, (std::set<std::uint32_t>{4}));
}

TEST(SlotPool, QuadsReadInPlaceAndExpiredOnesAreTransfersToo) {
  Pool small(10, 1);
  const RecallPlan plan = small.resolve({0, 4, 8}, 1, 0, 2);
  EXPECT_EQ(plan.misses, 1);
  EXPECT_EQ(plan.in_place, 1);
  EXPECT_EQ(small.left, (std::set<std::uint32_t>{2}));
  Pool p(10, 2);
  p.resolve({0, 4}, 1);
  const RecallPlan expired = p.resolve({0, 4}, 3, /*retain_from=*/2, 1);
  EXPECT_EQ(expired.hits, 0);
  EXPECT_EQ(expired.misses, 1);
  EXPECT_EQ(p.left, (std::set<std::uint32_t>{1}));
  EXPECT_EQ(p.directory[1], kNoSlot);
}

class AnyLimit : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(SlotPool, AnyLimit, ::testing::Values(kNoLimit, 1, 5));

TEST_P(AnyLimit, DirectoryAndSlotsAlwaysAgree) {
  testing::Random random(5);
  for (const int slots : {1, 3, 16, 64}) {
    Pool p(64, slots);
    std::map<std::uint32_t, std::uint32_t> content;  // slot -> quad, as copies say
    for (std::uint32_t step = 1; step < 400; ++step) {
      std::set<std::uint32_t> rows;
      for (int i = random.between(0, 40); i > 0; --i) {
        rows.insert(static_cast<std::uint32_t>(random.between(0, 255)));
      }
      const RecallPlan plan =
          p.resolve({rows.begin(), rows.end()}, step, step > 2 ? step - 2 : 0, GetParam());
      ASSERT_LE(plan.misses + plan.in_place, GetParam());
      for (int i = 0; i < plan.num_copies; ++i)
        content[p.copies[static_cast<std::size_t>(i)].slot] =
            p.copies[static_cast<std::size_t>(i)].quad;
      std::set<std::uint32_t> quads;
      for (const std::uint32_t row : rows) quads.insert(row / 4);
      ASSERT_EQ(plan.hits + plan.misses + plan.in_place + static_cast<int>(p.left.size()),
                static_cast<int>(quads.size()));
      std::set<std::uint32_t> used;
      for (std::uint32_t quad = 0; quad < 64; ++quad) {
        if (p.directory[quad] == kNoSlot) continue;
        ASSERT_LT(p.directory[quad], static_cast<std::uint32_t>(slots));
        ASSERT_TRUE(used.insert(p.directory[quad]).second) << "two quads in one slot";
        ASSERT_EQ(content.at(p.directory[quad]), quad) << "the slot holds another quad";
      }
      if (plan.in_place == 0) continue;
      for (const std::uint32_t quad : quads) {
        if (p.directory[quad] == kNoSlot) continue;
        used.erase(p.directory[quad]);
      }
      ASSERT_TRUE(used.empty()) << "a quad was read in place while a slot could be taken";
    }
  }
}

}  // namespace
}  // namespace clusterkv::recall
