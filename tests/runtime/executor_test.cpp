// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "clusterkv/error.hpp"
#include "clusterkv/executor.hpp"
#include "src/runtime/parallel.hpp"
#include "src/runtime/task_board.hpp"

namespace clusterkv {
namespace {

/// Runs `count` tasks and expects each to run once.
void expect_each_once(Executor& executor, int count) {
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
  runtime::parallel_for(executor, count, [&](int i) { ++runs[static_cast<std::size_t>(i)]; });
  for (const auto& run : runs) ASSERT_EQ(run.load(), 1);
}

TEST(ThreadPool, RunsEachTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    const auto pool = make_thread_pool(threads);
    EXPECT_EQ(pool->concurrency(), threads);
    for (const int count : {0, 1, 2, 7, 1000}) expect_each_once(*pool, count);
  }
}

TEST(ThreadPool, RunsManyShortRegions) {
  const auto pool = make_thread_pool(3);
  std::atomic<int> sum{0};
  for (int region = 0; region < 20000; ++region) {
    runtime::parallel_for(*pool, 3, [&](int i) { sum += i; });
  }
  EXPECT_EQ(sum.load(), 20000 * 3);
}

TEST(ThreadPool, WakesAfterItSlept) {
  const auto pool = make_thread_pool(2);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    expect_each_once(*pool, 50);
  }
}

TEST(ThreadPool, RunsMoreTasksThanTheBoardHolds) {
  const auto pool = make_thread_pool(2);
  std::atomic<std::int64_t> sum{0};
  const int count = runtime::TaskBoard::kMaxTasks + 10;
  runtime::parallel_for(*pool, count, [&](int i) { sum += i; });
  EXPECT_EQ(sum.load(), std::int64_t{count} * (count - 1) / 2);
}

TEST(ThreadPool, TakesAllCoresByDefault) {
  EXPECT_GE(make_thread_pool()->concurrency(), 1);
}

TEST(ThreadPool, RejectsNegativeThreads) {
  try {
    (void)make_thread_pool(-2);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "num_threads: -2, expected >= 0");
  }
}

TEST(LentThreads, LeaderAloneDoesEverything) {
  LentThreads lent(4);
  EXPECT_EQ(lent.concurrency(), 4);
  expect_each_once(lent, 100);
  lent.release();
}

TEST(LentThreads, HelpersServeOneOperationAfterTheOther) {
  constexpr int kOperations = 300;
  LentThreads lent(3);
  std::vector<std::jthread> helpers;
  for (int i = 0; i < 2; ++i) {
    helpers.emplace_back([&] {
      for (int operation = 0; operation < kOperations; ++operation) lent.serve(operation);
    });
  }
  for (int operation = 0; operation < kOperations; ++operation) {
    for (int region = 0; region < 4; ++region) expect_each_once(lent, 16);
    lent.release();
  }
}

TEST(LentThreads, LateHelperReturnsAtOnce) {
  LentThreads lent(2);
  expect_each_once(lent, 8);
  lent.release();
  lent.serve(0);
}

TEST(LentThreads, RejectsNoThreads) {
  EXPECT_THROW(LentThreads(0), ConfigError);
}

TEST(ParallelItems, VisitsEachItemOfEachList) {
  const auto pool = make_thread_pool(2);
  const std::int32_t starts[] = {0, 0, 3, 3, 4, 4};
  std::atomic<int> visits{0};
  std::atomic<int> wrong{0};
  runtime::parallel_items(*pool, starts, 5, [&](int list, int item) {
    ++visits;
    const bool known = (list == 1 && item >= 0 && item < 3) || (list == 3 && item == 0);
    if (!known) ++wrong;
  });
  EXPECT_EQ(visits.load(), 4);
  EXPECT_EQ(wrong.load(), 0);
}

}  // namespace
}  // namespace clusterkv
