// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/cell_sets.hpp"

#include <gmock/gmock.h>

#include <map>
#include <numeric>
#include <utility>

namespace clusterkv::llama_cpp {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

using Origin = Member::Origin;

/// [first, last)
std::vector<int> range(int first, int last) {
  std::vector<int> cells(static_cast<std::size_t>(last - first));
  std::iota(cells.begin(), cells.end(), first);
  return cells;
}

std::vector<int> operator+(std::vector<int> a, const std::vector<int>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Stands for the engine's cache, and does with members what a group does.
class CellSetsTest : public ::testing::Test {
 protected:
  std::vector<Member> step(const std::vector<MaskRow>& rows) {
    auto members = sets_.match(rows, print_);
    for (Member& member : members) {
      if (member.origin == Origin::kContinued) {
        CellSets::cut(*member.set, member.kept);
      } else {
        CellSet& set =
            sets_.add(SequenceId{next_++}, rows[static_cast<std::size_t>(member.rows[0])].stream);
        if (member.origin == Origin::kForked) {
          const auto kept = range(0, static_cast<int>(member.kept));
          std::vector<int> cells;
          for (const int i : kept) cells.push_back(member.set->cells[static_cast<std::size_t>(i)]);
          CellSets::append(set, cells, print_);
        }
        member.set = &set;
      }
      CellSets::append(*member.set, member.added, print_);
    }
    return members;
  }

  void refill(int cell, int stream = 0) { ++contents_[{stream, cell}]; }

  CellSets sets_;
  std::map<std::pair<int, int>, std::uint64_t> contents_;
  CellPrint print_ = [this](int stream, int cell) { return contents_[{stream, cell}]; };
  std::int64_t next_ = 0;
};

TEST_F(CellSetsTest, APromptIsNewAndTokensContinueIt) {
  auto members = step({{0, range(0, 100)}});
  ASSERT_THAT(members, SizeIs(1));
  EXPECT_EQ(members[0].origin, Origin::kNew);
  EXPECT_EQ(members[0].added, range(0, 100));
  members = step({{0, range(0, 101)}});
  EXPECT_EQ(members[0].origin, Origin::kContinued);
  EXPECT_EQ(members[0].kept, 100U);
  EXPECT_THAT(members[0].added, ElementsAre(100));
}

TEST_F(CellSetsTest, RowsOfAlternatingSequencesFindTheirOwnSets) {
  step({{0, range(0, 10)}});
  step({{0, range(10, 30)}});
  for (int i = 30; i < 40; i += 2) {
    std::vector<int> first = range(0, 10), second = range(10, 30);
    for (int j = 30; j <= i; j += 2) first.push_back(j);
    for (int j = 31; j < i; j += 2) second.push_back(j);
    second.push_back(i + 1);
    EXPECT_THAT(step({{0, first}})[0].added, ElementsAre(i));
    EXPECT_THAT(step({{0, second}})[0].added, ElementsAre(i + 1));
  }
  EXPECT_EQ(sets_.size(), 2U);
}

TEST_F(CellSetsTest, RowsOfOneStepAreTheirOwnSequences) {
  const auto members =
      step({{0, range(0, 10) + std::vector{20}}, {0, range(10, 20) + std::vector{21}}});
  ASSERT_THAT(members, SizeIs(2));
  EXPECT_THAT(members[0].rows, ElementsAre(0));
  EXPECT_THAT(members[1].rows, ElementsAre(1));
}

TEST_F(CellSetsTest, RowsThatGrowByTheirOwnTokenAreOneBlock) {
  step({{0, range(0, 10)}});
  const auto members = step({{0, range(0, 11)}, {0, range(0, 12)}, {0, range(0, 13)}});
  ASSERT_THAT(members, SizeIs(1));
  EXPECT_THAT(members[0].rows, ElementsAre(0, 1, 2));
  EXPECT_THAT(members[0].added, ElementsAre(10, 11, 12));
  EXPECT_TRUE(members[0].is_block);
}

TEST_F(CellSetsTest, RowsThatGrowByMoreAreNoBlock) {
  const auto members = step({{0, range(0, 10)}, {0, range(0, 12)}});
  ASSERT_THAT(members, SizeIs(1));
  EXPECT_EQ(members[0].added, range(0, 12));
  EXPECT_FALSE(members[0].is_block);
}

TEST_F(CellSetsTest, TheSameCellsOfAnotherStreamAreAnotherSequence) {
  step({{0, range(0, 10)}, {1, range(0, 10)}});
  const auto members = step({{0, range(0, 11)}, {1, range(0, 11)}});
  ASSERT_THAT(members, SizeIs(2));
  EXPECT_EQ(members[0].set->stream, 0);
  EXPECT_EQ(members[1].set->stream, 1);
  EXPECT_EQ(members[1].kept, 10U);
}

TEST_F(CellSetsTest, ASharedPrefixIsForked) {
  step({{0, range(0, 10)}});
  auto members = step({{0, range(0, 10) + std::vector{10}}, {0, range(0, 10) + std::vector{11}}});
  EXPECT_EQ(members[0].origin, Origin::kContinued);
  EXPECT_EQ(members[1].origin, Origin::kForked);
  EXPECT_EQ(members[1].kept, 10U);
  EXPECT_THAT(members[1].added, ElementsAre(11));
  members = step({{0, range(0, 10) + std::vector{11, 12}}, {0, range(0, 11) + std::vector{13}}});
  EXPECT_THAT(members[0].added, ElementsAre(12));
  EXPECT_THAT(members[1].added, ElementsAre(13));
}

TEST_F(CellSetsTest, WhatAnotherSequenceMaySeeIsNotCut) {
  step({{0, range(0, 20)}});
  EXPECT_EQ(step({{0, range(0, 10) + std::vector{30}}})[0].origin, Origin::kForked);
  const auto members = step({{0, range(0, 21)}});
  EXPECT_EQ(members[0].kept, 20U);
}

TEST_F(CellSetsTest, CellsFilledAgainAreCutAndAppendedAgain) {
  step({{0, range(0, 20)}});
  refill(15);
  refill(17);
  const auto members = step({{0, range(0, 21)}});
  EXPECT_EQ(members[0].origin, Origin::kContinued);
  EXPECT_EQ(members[0].kept, 15U);
  EXPECT_EQ(members[0].added, range(15, 21));
  EXPECT_EQ(step({{0, range(0, 22)}})[0].kept, 21U);
}

TEST_F(CellSetsTest, ATokenComputedOnceMoreIsAppendedAgain) {
  step({{0, range(0, 20)}});
  const auto members = step({{0, range(0, 20)}});
  EXPECT_EQ(members[0].kept, 19U);
  EXPECT_THAT(members[0].added, ElementsAre(19));
}

TEST_F(CellSetsTest, SetsThatWereOverwrittenAreDropped) {
  step({{0, range(0, 20)}});
  step({{0, range(20, 30)}});
  refill(0);
  EXPECT_THAT(sets_.drop_overwritten(print_), ElementsAre(SequenceId{0}));
  EXPECT_EQ(sets_.size(), 1U);
  EXPECT_EQ(step({{0, range(0, 20)}})[0].origin, Origin::kNew);
}

TEST_F(CellSetsTest, CellsThatLeaveAtTheFrontAreASlidingWindow) {
  step({{0, range(0, 20)}});
  EXPECT_TRUE(step({{0, range(1, 21)}})[0].front_left);
  EXPECT_TRUE(step({{0, range(2, 22)}})[0].front_left);
}

TEST_F(CellSetsTest, AShiftOfAllCellsIsNoSlidingWindow) {
  step({{0, range(0, 20)}});
  for (int cell = 10; cell < 20; ++cell) refill(cell);
  EXPECT_FALSE(step({{0, range(10, 21)}})[0].front_left);
}

TEST_F(CellSetsTest, ASequenceBesideAnotherIsNoSlidingWindow) {
  step({{0, range(0, 20)}});
  EXPECT_FALSE(step({{0, range(20, 41)}})[0].front_left);
}

TEST_F(CellSetsTest, RowsThatSeeNothingHaveNoMember) {
  EXPECT_THAT(step({{0, {}}}), IsEmpty());
}

TEST_F(CellSetsTest, TheOldestSetIsNeverOneOfThisStep) {
  step({{0, range(0, 10)}});
  EXPECT_EQ(sets_.oldest(), nullptr);
  step({{0, range(10, 20)}});
  ASSERT_NE(sets_.oldest(), nullptr);
  EXPECT_EQ(sets_.oldest()->id, SequenceId{0});
  step({{0, range(0, 10) + std::vector{20}}});
  EXPECT_EQ(sets_.oldest()->id, SequenceId{1});
}

}  // namespace
}  // namespace clusterkv::llama_cpp
