// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace clusterkv::testing {

/// Expects an error of exactly this type, with `part` in its message.
template <class E>
void expect_error(const std::function<void()>& call, const std::string& part) {
  try {
    call();
    ADD_FAILURE() << "no error, expected one with: " << part;
  } catch (const E& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
        << error.what() << "\nlacks: " << part;
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another type of error: " << error.what() << "\nexpected one with: " << part;
  }
}

}  // namespace clusterkv::testing
