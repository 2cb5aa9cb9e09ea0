// SPDX-License-Identifier: Apache-2.0
//
// What the executor says of kernels that are wrong in ways it can see without instrumentation. Races and
// uninitialised reads: checks_test.cpp, and the broken kernels of mutations/.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/cuda/device.cuh"

namespace clusterkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

namespace device = clusterkv::CLUSTERKV_DEVICE;

struct Words {
  alignas(16) std::uint32_t word[64];
};

template <class Kernel>
std::vector<std::string> reports_of(unsigned threads, const Kernel& kernel,
                                    std::size_t shared_bytes = sizeof(Words)) {
  ::simt::set_options({.host_memory = true});
  ::simt::take_reports();
  ::simt::run({{1}, {threads}, shared_bytes, nullptr}, kernel);
  return ::simt::take_reports();
}

TEST(Executor, RunsEveryThreadOfEveryBlockOnce) {
  for (const std::uint64_t seed : {0, 3}) {
    ::simt::set_options({.seed = seed, .host_memory = true});
    std::vector<int> runs(6 * 70);
    ::simt::run({{3, 2}, {70}, 0, nullptr}, [&] {
      EXPECT_EQ(blockDim.x, 70U);
      EXPECT_EQ(gridDim.y, 2U);
      ++runs[(blockIdx.y * 3 + blockIdx.x) * 70 + threadIdx.x];
    });
    EXPECT_EQ(runs, std::vector<int>(6 * 70, 1));
    EXPECT_EQ(::simt::take_reports(), std::vector<std::string>{});
  }
}

TEST(Executor, BarriersSeparatePhases) {
  for (const std::uint64_t seed : {0, 1, 2, 3}) {
    ::simt::set_options({.seed = seed, .host_memory = true});
    int arrived = 0;
    ::simt::run({{1}, {100}, 0, nullptr}, [&] {
      ++arrived;
      __syncthreads();
      EXPECT_EQ(arrived, 100);
    });
  }
}

TEST(Executor, SchedulesDependOnTheSeedAlone) {
  const auto order_of = [](std::uint64_t seed) {
    ::simt::set_options({.seed = seed, .host_memory = true});
    std::vector<unsigned> order;
    ::simt::run({{4}, {40}, 0, nullptr}, [&] { order.push_back(blockIdx.x * 40 + threadIdx.x); });
    return order;
  };
  EXPECT_EQ(order_of(5), order_of(5));
  EXPECT_NE(order_of(5), order_of(6));
  EXPECT_NE(order_of(5), order_of(0));
}

TEST(Executor, ReportsDeadlocksWithTheirPlaces) {
  const auto reports = reports_of(64, [] {
    if (threadIdx.x < 32) __ballot_sync(0xffffffffU, threadIdx.x < 16 ? 1 : 0);
    if (threadIdx.x == 40) __syncwarp();
  });
  EXPECT_THAT(reports, ElementsAre(HasSubstr("mask names a lane that has left"),
                                   HasSubstr("deadlock: 1 threads wait at executor_test.cpp")));
}

TEST(Executor, ReportsBarriersThatNotAllReach) {
  const auto reports = reports_of(64, [] {
    if (threadIdx.x < 32) __syncthreads();
  });
  EXPECT_THAT(reports, ElementsAre(HasSubstr("exit while others wait at the barrier executor_test"),
                                   HasSubstr("deadlock: 32 threads")));
}

TEST(Executor, ReportsDivergentBarriers) {
  const auto reports = reports_of(64, [] {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  });
  EXPECT_THAT(reports, ElementsAre(AllOf(HasSubstr("divergent barrier"), HasSubstr(" and "))));
}

TEST(Executor, ReportsMasksWithoutTheirCaller) {
  EXPECT_THAT(reports_of(32, [] { __ballot_sync(1U << (threadIdx.x ^ 1U), 1); }),
              ::testing::Contains(HasSubstr("mask without its caller")));
}

TEST(Executor, ReportsMasksThatNameALaneThatDoesNotExist) {
  EXPECT_THAT(reports_of(20, [] { __syncwarp(); }),
              ElementsAre(HasSubstr("mask names a lane that does not exist at executor_test.cpp"),
                          HasSubstr("deadlock: 20 threads")));
}

TEST(Executor, ReportsShufflesFromOutsideTheMask) {
  EXPECT_THAT(reports_of(32,
                         [] {
                           if (threadIdx.x < 16) __shfl_sync(0xffffU, 1, 20);
                         }),
              ElementsAre(HasSubstr("shuffle from a lane outside the mask")));
}

TEST(Executor, ReportsCopiesNobodyWaitedFor) {
  alignas(16) const std::uint32_t source[4] = {};
  EXPECT_THAT(reports_of(1,
                         [&] {
                           device::cp_async16(device::dynamic_shared<Words>().word, source);
                           device::cp_async_commit();
                         }),
              ElementsAre(HasSubstr("exit with copies under way")));
}

TEST(Executor, ReportsMisalignedVectors) {
  EXPECT_THAT(reports_of(1,
                         [] {
                           auto* words = device::dynamic_shared<Words>().word;
                           device::store128(words + 1, uint4{1, 2, 3, 4});
                         }),
              ElementsAre(HasSubstr("misaligned write")));
}

TEST(Executor, ReportsMisalignedReadsAndCopies) {
  alignas(16) const std::uint32_t source[8] = {};
  EXPECT_THAT(reports_of(1, [&] { device::load128(source + 1); }),
              ElementsAre(HasSubstr("misaligned read at executor_test.cpp")));
  const auto copy = [&](std::size_t to, std::size_t from) {
    device::cp_async16(device::dynamic_shared<Words>().word + to, source + from);
    device::cp_async_commit();
    device::cp_async_wait<0>();
  };
  EXPECT_THAT(reports_of(1, [&] { copy(0, 2); }),
              ElementsAre(HasSubstr("misaligned read at executor_test.cpp")));
  EXPECT_THAT(reports_of(1, [&] { copy(1, 0); }),
              ElementsAre(HasSubstr("misaligned write at executor_test.cpp")));
}

TEST(Executor, ReportsCopiesToOtherThanSharedMemory) {
  alignas(16) const std::uint32_t source[4] = {};
  alignas(16) std::uint32_t target[4];
  EXPECT_THAT(reports_of(1,
                         [&] {
                           device::cp_async16(target, source);
                           device::cp_async_wait<0>();
                         }),
              ::testing::Contains(HasSubstr("cp.async to outside shared memory")));
}

TEST(Executor, ReportsMoreSharedMemoryThanWasLaunched) {
  EXPECT_THAT(reports_of(
                  1, [] { device::dynamic_shared<Words>(); }, 64),
              ElementsAre(HasSubstr("256 bytes used, 64 launched with")));
}

TEST(Executor, ReportsAccessesBeyondAnAllocation) {
  auto* memory = static_cast<std::byte*>(::simt::allocate(64));
  EXPECT_THAT(reports_of(1, [&] { device::store128(memory + 64, uint4{}); }),
              ElementsAre(HasSubstr("out of bounds")));
  ::simt::release(memory);
}

TEST(Executor, ReportsStaticDataOfTheHost) {
  static Words table;
  EXPECT_THAT(reports_of(1, [] { device::load128(&table); }),
              ElementsAre(HasSubstr("access to the host's static data at executor_test.cpp")));
}

TEST(Executor, ReportsMemoryOfTheHost) {
  // Not `new`, which is the arena here.
  const std::unique_ptr<void, decltype(&std::free)> memory(std::calloc(1, 16), std::free);
  ::simt::set_options({});
  ::simt::take_reports();
  ::simt::run({{1}, {1}, 0, nullptr}, [at = memory.get()] { device::load128(at); });
  EXPECT_THAT(::simt::take_reports(),
              ElementsAre(HasSubstr("access to the host's memory at executor_test.cpp")));
}

TEST(Executor, ReportsLaunchesNoDeviceTakes) {
  const auto reports_of_launch = [](dim3 grid, dim3 block, std::size_t shared_bytes = 0) {
    ::simt::run({grid, block, shared_bytes, nullptr}, [] {});
    return ::simt::take_reports();
  };
  ::simt::set_options({});
  EXPECT_THAT(reports_of_launch({2, 3, 4}, {8, 8, 16}, 163 * 1024), ElementsAre());
  for (const dim3& grid : {dim3{0, 1, 1}, dim3{1, 0, 1}, dim3{1, 1, 0}, dim3{1U << 31, 1, 1},
                           dim3{1, 65536, 1}, dim3{1, 1, 65536}}) {
    EXPECT_THAT(reports_of_launch(grid, {1}), ElementsAre(HasSubstr("launch: grid")));
  }
  for (const dim3& block : {dim3{0, 1, 1}, dim3{1, 0, 1}, dim3{1, 1, 0}, dim3{1025, 1, 1},
                            dim3{1, 1, 65}, dim3{64, 32, 1}}) {
    EXPECT_THAT(reports_of_launch({1}, block), ElementsAre(HasSubstr("launch: grid")));
  }
  EXPECT_THAT(reports_of_launch({1}, {1}, 163 * 1024 + 1),
              ElementsAre(HasSubstr("166913 bytes of shared memory")));
}

}  // namespace
}  // namespace clusterkv::testing
