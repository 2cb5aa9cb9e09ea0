// SPDX-License-Identifier: Apache-2.0
//
// The device ops of the build: on the executor of tests/simt. A case runs with its launches in order
// and with random schedules; the executor must have nothing to report.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/common/cuda/device.cuh"
#include "tests/support/stores.hpp"

namespace clusterkv::testing {

namespace on_device = clusterkv::CLUSTERKV_DEVICE;

class DeviceTest : public ::testing::Test {
 protected:
  DeviceTest() {
    set_test_memory(
        {::simt::allocate, [](void* memory) { ::simt::release(memory); }, ::simt::mark_written});
  }
  void SetUp() override {
    const char* seed = std::getenv("CLUSTERKV_SIMT_SEED");
    ::simt::set_options({.seed = seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10)});
    ::simt::take_reports();
  }
  void TearDown() override {
    for (const std::string& report : ::simt::take_reports()) ADD_FAILURE() << report;
  }
};

}  // namespace clusterkv::testing
