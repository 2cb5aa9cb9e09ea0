// SPDX-License-Identifier: Apache-2.0
#include "kernels/recall/rules.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "tests/reference/recall.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::recall {
namespace {

TEST(QuadOf, FourRowsShareAQuad) {
  EXPECT_EQ(quad_of(0), 0U);
  EXPECT_EQ(quad_of(3), 0U);
  EXPECT_EQ(quad_of(4), 1U);
  EXPECT_EQ(quad_of(0xFFFFFFFFU), 0x3FFFFFFFU);
}

TEST(IsRetained, CountsFromTheStampOn) {
  EXPECT_TRUE(is_retained({1, 5, false}, 5));
  EXPECT_TRUE(is_retained({1, 6, false}, 5));
  EXPECT_FALSE(is_retained({1, 4, true}, 5));
  EXPECT_TRUE(is_retained({1, 0, false}, 0));  // LRU: everything is retained
}

TEST(TakeSlot, EmptySlotsAreFree) {
  SlotState slot{kNoQuad, 0, false};
  EXPECT_TRUE(take_slot(slot, 1));
  slot = {kNoQuad, 7, true};  // freed by its owner in this very plan
  EXPECT_TRUE(take_slot(slot, 7));
}

TEST(TakeSlot, AReferencedSlotGetsASecondChance) {
  SlotState slot{3, 1, true};
  EXPECT_FALSE(take_slot(slot, 2));
  EXPECT_FALSE(slot.referenced);
  EXPECT_TRUE(take_slot(slot, 2));
}

TEST(TakeSlot, SlotsOfTheRunningPlanStayAndKeepTheirChance) {
  for (const bool referenced : {false, true}) {
    SlotState slot{3, 9, referenced};
    EXPECT_FALSE(take_slot(slot, 9));
    EXPECT_EQ(slot.referenced, referenced);
    EXPECT_EQ(slot.stamp, 9U);
    EXPECT_EQ(slot.owner, 3U);
  }
}

/// The rules with a clock hand, as a slot pool drives them.
class Clock {
 public:
  explicit Clock(int capacity) : slots_(static_cast<std::size_t>(capacity), {kNoQuad, 0, false}) {}

  bool touch(std::uint32_t quad, std::uint32_t plan) {
    for (SlotState& slot : slots_) {
      if (slot.owner != quad) continue;
      slot.referenced = true;
      slot.stamp = plan;
      return true;
    }
    for (std::size_t looked = 0; looked < 2 * slots_.size(); ++looked) {
      SlotState& slot = slots_[hand_];
      hand_ = (hand_ + 1) % slots_.size();
      if (!take_slot(slot, plan)) continue;
      slot = {quad, plan, false};
      break;
    }
    return false;
  }
  [[nodiscard]] std::set<std::uint32_t> owners() const {
    std::set<std::uint32_t> result;
    for (const SlotState& slot : slots_) {
      if (slot.owner != kNoQuad) result.insert(slot.owner);
    }
    return result;
  }

 private:
  std::vector<SlotState> slots_;
  std::size_t hand_ = 0;
};

struct Load {
  int capacity;
  int quads;
  int per_step;
};
class SecondChance : public ::testing::TestWithParam<Load> {};

TEST_P(SecondChance, HitsAndContentsAreThoseOfTheModelAtEveryStep) {
  const Load load = GetParam();
  testing::Random random(static_cast<std::uint64_t>(load.capacity));
  Clock clock(load.capacity);
  reference::SecondChance model(load.capacity);
  for (std::uint32_t plan = 1; plan < 2000; ++plan) {
    model.begin_step();
    std::set<int> quads;  // a step names a quad once; old favourites are likelier
    while (static_cast<int>(quads.size()) < load.per_step) {
      quads.insert(std::min(random.between(0, load.quads - 1), random.between(0, load.quads - 1)));
    }
    for (const int quad : quads) {
      ASSERT_EQ(clock.touch(static_cast<std::uint32_t>(quad), plan), model.touch(quad))
          << "plan " << plan << " quad " << quad;
    }
    for (int quad = 0; quad < load.quads; ++quad) {
      ASSERT_EQ(clock.owners().contains(static_cast<std::uint32_t>(quad)), model.holds(quad));
    }
  }
}

std::string name_of_load(const ::testing::TestParamInfo<Load>& test) {
  return "slots" + std::to_string(test.param.capacity) + "_quads" +
         std::to_string(test.param.quads) + "_step" + std::to_string(test.param.per_step);
}

// The fourth names more quads a step than there are slots: those are read in place.
INSTANTIATE_TEST_SUITE_P(Loads, SecondChance,
                         ::testing::Values(Load{1, 5, 1}, Load{4, 9, 2}, Load{8, 40, 5},
                                           Load{6, 20, 9}, Load{32, 64, 8}),
                         name_of_load);

}  // namespace
}  // namespace clusterkv::recall
