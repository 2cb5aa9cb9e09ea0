// SPDX-License-Identifier: Apache-2.0
#include "tests/pipeline/news.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace {

constexpr int kNever = -1;

std::atomic<bool> counting{false};
std::atomic<int> news{0};
std::atomic<long long> live{0};
std::atomic<int> until_failure{kNever};
std::atomic<bool> has_failed{false};

[[maybe_unused]] void* counted(std::size_t bytes, std::size_t alignment) {
  if (counting) ++news;
  if (until_failure != kNever && until_failure-- == 0) {
    has_failed = true;
    throw std::bad_alloc();
  }
  const std::size_t rounded = (std::max<std::size_t>(bytes, 1) + alignment - 1) / alignment;
  void* data = std::aligned_alloc(alignment, rounded * alignment);
  if (data == nullptr) throw std::bad_alloc();
  ++live;
  return data;
}

[[maybe_unused]] void give_back(void* data) {
  if (data != nullptr) --live;
  std::free(data);
}

}  // namespace

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void* operator new(std::size_t bytes) {
  return counted(bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* data) noexcept {
  give_back(data);
}
void operator delete(void* data, std::size_t) noexcept {
  give_back(data);
}
void operator delete(void* data, std::align_val_t) noexcept {
  give_back(data);
}
void operator delete(void* data, std::size_t, std::align_val_t) noexcept {
  give_back(data);
}
#endif

namespace clusterkv::testing {

void begin_counting_news() {
  news = 0;
  counting = true;
}

int end_counting_news() {
  counting = false;
  return news;
}

void fail_new(int number) {
  has_failed = false;
  until_failure = number;
}

bool end_failing_new() {
  until_failure = kNever;
  return has_failed;
}

long long live_news() {
  return live;
}

TEST(News, AreCountedAndFailWhereTheyAreTold) {
  if (!kCountsNews) GTEST_SKIP() << "a sanitizer counts for itself";
  const long long before = live_news();
  begin_counting_news();
  std::vector<std::unique_ptr<int>> numbers(3);
  fail_new(1);
  numbers[0] = std::make_unique<int>(0);
  EXPECT_THROW(numbers[1] = std::make_unique<int>(1), std::bad_alloc);
  numbers[2] = std::make_unique<int>(2);
  EXPECT_TRUE(end_failing_new());
  EXPECT_EQ(end_counting_news(), 4);
  EXPECT_EQ(live_news(), before + 3);
  numbers.clear();
  numbers.shrink_to_fit();
  EXPECT_EQ(live_news(), before);
  fail_new(5);
  EXPECT_FALSE(end_failing_new());
}

}  // namespace clusterkv::testing
