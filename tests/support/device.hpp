// SPDX-License-Identifier: Apache-2.0
//
// The device ops of the build: on a device, or on the executor of tests/simt, which must then have
// nothing to report. All memory of a test program that runs on a device is visible there
// (tests/cuda/main.cpp).
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/common/cuda/backend.hpp"
#include "tests/support/stores.hpp"

#ifdef CLUSTERKV_SIMT
#include <simt/executor.hpp>
#endif

namespace clusterkv::CLUSTERKV_DEVICE {}

namespace clusterkv::testing {

namespace on_device = clusterkv::CLUSTERKV_DEVICE;

class DeviceTest : public ::testing::Test {
#ifdef CLUSTERKV_SIMT
 protected:
  DeviceTest() {
    set_test_memory(
        {::simt::allocate, [](void* memory) { ::simt::release(memory); }, ::simt::mark_written});
  }
  void SetUp() override {
    const char* seed = std::getenv("CLUSTERKV_SIMT_SEED");
    set_schedule(seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10));
    ::simt::take_reports();
  }
  void TearDown() override {
    for (const std::string& report : ::simt::take_reports()) ADD_FAILURE() << report;
  }
  /// Order of threads and blocks of the launches that follow; 0 is in order.
  static void set_schedule(std::uint64_t seed) {
    ::simt::set_options({.seed = seed});
  }
#else
 protected:
  static void set_schedule(std::uint64_t) {}  // a device's are always new
#endif
};

}  // namespace clusterkv::testing
