// SPDX-License-Identifier: Apache-2.0
//
// The device ops of the build: on a device, or on the executor of tests/simt, which must then have
// nothing to report. All memory of a test program that runs on a device is visible there
// (tests/cuda/main.cpp).
#pragma once

#include <gtest/gtest.h>

#include <cinttypes>
#include <cstdio>

#include "kernels/common/cuda/backend.hpp"
#include "tests/support/stores.hpp"

#ifdef CLUSTERKV_SIMT
#include <simt/executor.hpp>
#endif

namespace clusterkv::CLUSTERKV_DEVICE {}

namespace clusterkv::testing {

namespace on_device = clusterkv::CLUSTERKV_DEVICE;

class DeviceTest : public ::testing::Test {
 public:
  /// In order, but what a cache does beside the engine's stream is done when somebody waits for it.
  static constexpr std::uint64_t kSideStreamsLast = ~std::uint64_t{0};

#ifdef CLUSTERKV_SIMT
 protected:
  DeviceTest() {
    set_test_memory({[](std::size_t bytes) { return operator new(bytes); },
                     [](void* memory) { operator delete(memory); }, ::simt::mark_guard});
  }
  void SetUp() override {
    set_schedule(0);
    ::simt::take_reports();
  }
  void TearDown() override {
    for (const std::string& report : ::simt::take_reports()) ADD_FAILURE() << report;
    if (HasFailure()) std::printf("CLUSTERKV_SIMT_SEED=%" PRIu64 "\n", ::simt::seed());
  }
  /// Order of streams, threads and blocks from here on; 0 is in order. CLUSTERKV_SIMT_SEED names one for all.
  static void set_schedule(std::uint64_t seed) {
    const bool side_streams_last = seed == kSideStreamsLast;
    // What a suite hands to an op may lie on the stack.
    ::simt::set_options({.seed = side_streams_last ? 0 : seed,
                         .oldest_stream_first = side_streams_last,
                         .host_memory = true});
  }
#else
 protected:
  static void set_schedule(std::uint64_t) {}  // a device's are always new
#endif
};

}  // namespace clusterkv::testing
