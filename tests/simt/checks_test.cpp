// SPDX-License-Identifier: Apache-2.0
//
// What the executor says of accesses of instrumented kernels: those of checked_kernels.cpp. Real kernels,
// broken, are in mutations/.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "checked_kernels.hpp"

namespace clusterkv::testing {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Words = std::vector<std::uint32_t>;

template <class... Params, class... Args>
std::vector<std::string> reports_of(unsigned threads, void (*kernel)(Params...), Args... args) {
  ::simt::set_options({});
  ::simt::take_reports();
  simt::launch(kernel, {{1}, {threads}, 4096, nullptr}, args...);
  return ::simt::take_reports();
}

// ------------------------------------------------------------------------------------ bounds

TEST(Checks, ReportsAccessesBeyondAVector) {
  Words words(5);
  EXPECT_THAT(reports_of(1, write_at, words.data(), 4), IsEmpty());
  EXPECT_THAT(reports_of(1, write_at, words.data(), 5),
              ElementsAre(HasSubstr("out of bounds at checked_kernels.cpp")));
  EXPECT_THAT(reports_of(1, write_at, words.data(), -1), ElementsAre(HasSubstr("out of bounds")));
}

TEST(Checks, ReportsAccessesToWhatWasFreed) {
  auto* words = static_cast<std::uint32_t*>(::simt::allocate(1 << 20));
  ::simt::release(words);
  EXPECT_THAT(reports_of(1, write_at, words, 0), ElementsAre(HasSubstr("out of bounds")));
}

TEST(Checks, ReportsAccessesToAGuard) {
  Words words(8);
  ::simt::mark_guard(words.data() + 6, 2 * sizeof words[0]);
  EXPECT_THAT(reports_of(1, write_at, words.data(), 5), IsEmpty());
  EXPECT_THAT(reports_of(1, write_at, words.data(), 6), ElementsAre(HasSubstr("out of bounds")));
}

TEST(Checks, ReportsReadsOfWhatNobodyWrote) {
  auto* memory = static_cast<std::uint32_t*>(::simt::allocate(8));
  EXPECT_THAT(reports_of(1, copy_one, memory, memory + 1),
              ElementsAre(HasSubstr("uninitialised read at checked_kernels.cpp")));
  ::simt::mark_written(memory, 4);
  EXPECT_THAT(reports_of(1, copy_one, memory, memory + 1), IsEmpty());
  ::simt::release(memory);
}

TEST(Checks, ReportsMisalignedAccesses) {
  Words words(2);
  auto* odd = reinterpret_cast<std::uint32_t*>(reinterpret_cast<std::byte*>(words.data()) + 2);
  EXPECT_THAT(reports_of(1, write_at, odd, 0),
              ElementsAre(HasSubstr("misaligned access at checked_kernels.cpp")));
}

// ------------------------------------------------------------------------------------- races

TEST(Checks, SyncwarpOrdersTheLanesOfItsMaskOnly) {
  Words word(1), to(32);
  constexpr unsigned kAll = ~0U;
  EXPECT_THAT(reports_of(32, write_then_read, word.data(), to.data(), kAll, 20U), IsEmpty());
  EXPECT_THAT(reports_of(32, write_then_read, word.data(), to.data(), 0xffU, 7U), IsEmpty());
  EXPECT_THAT(reports_of(32, write_then_read, word.data(), to.data(), 0xffU, 8U),
              ElementsAre(HasSubstr("race: read after write")));
  EXPECT_THAT(reports_of(32, write_then_read, word.data(), to.data(), 0xff00U, 8U),
              ElementsAre(HasSubstr("race: read after write")));
}

TEST(Checks, SyncwarpOrdersNoOtherWarp) {
  Words word(1), to(1);
  EXPECT_THAT(reports_of(64, write_then_read, word.data(), to.data(), ~0U, 32U),
              ElementsAre(HasSubstr("race: read after write")));
}

TEST(Checks, AWriteFollowsAllReadsOfTheWarp) {
  Words word(1), to(32);
  EXPECT_THAT(reports_of(32, read_then_write, word.data(), to.data(), ~0U, 31U), IsEmpty());
  EXPECT_THAT(reports_of(32, read_then_write, word.data(), to.data(), ~1U, 31U),
              ElementsAre(HasSubstr("race: write after read")));
  EXPECT_THAT(reports_of(64, read_then_write, word.data(), to.data(), ~0U, 31U),
              Contains(HasSubstr("race")));
}

TEST(Checks, OrderPassesFromLaneToLane) {
  Words word(1), to(1);
  EXPECT_THAT(reports_of(32, pass_by_hand, word.data(), to.data(), 2U), IsEmpty());
  EXPECT_THAT(reports_of(32, pass_by_hand, word.data(), to.data(), 3U),
              ElementsAre(HasSubstr("race: read after write")));
}

TEST(Checks, BlocksHandOverByAFenceAndAnAtomic) {
  const auto reports_of_two = [](bool fences) {
    Words words(2), counter(1), to(1);
    ::simt::set_options({});
    simt::launch(hand_over, {{2}, {1}, 0, nullptr}, words.data(), counter.data(), to.data(),
                 fences);
    EXPECT_EQ(to[0], 2U);
    return ::simt::take_reports();
  };
  EXPECT_THAT(reports_of_two(true), IsEmpty());
  EXPECT_THAT(reports_of_two(false), ElementsAre(HasSubstr("race: read after write")));
}

TEST(Checks, SharedMemoryHandsNothingToOtherBlocks) {
  Words words(2), to(1);
  ::simt::set_options({});
  simt::launch(meet_in_shared, {{2}, {1}, 0, nullptr}, words.data(), to.data());
  EXPECT_THAT(::simt::take_reports(), ElementsAre(HasSubstr("race: read after write")));
}

// ---------------------------------------------------------------------- static shared memory

TEST(Checks, StaticSharedMemoryIsTheBlocks) {
  Words to(64);
  EXPECT_THAT(reports_of(64, rotate, to.data(), true, true), IsEmpty());
  EXPECT_EQ(to[3], 35U + 5U);
  EXPECT_THAT(reports_of(64, rotate, to.data(), false, true), Contains(HasSubstr("race")));
  EXPECT_THAT(reports_of(64, rotate, to.data(), true, false),
              ElementsAre(HasSubstr("uninitialised read at checked_kernels.cpp")));
}

TEST(Checks, StaticSharedMemoryIsNewInEachBlock) {
  Words to(1);
  ::simt::set_options({});
  simt::launch(add_up, {{2}, {1}, 0, nullptr}, to.data());
  EXPECT_THAT(::simt::take_reports(), Contains(HasSubstr("uninitialised read")));
}

}  // namespace
}  // namespace clusterkv::testing
