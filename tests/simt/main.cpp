// SPDX-License-Identifier: Apache-2.0
//
// Runs the programs of tests/simt. Under CLUSTERKV_SIMT_SEED=S, --gtest_repeat=N takes the seeds S, S + 1 …
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace {

class NextSeed : public ::testing::EmptyTestEventListener {
 public:
  explicit NextSeed(unsigned long long first) : first_(first) {}
  void OnTestIterationStart(const ::testing::UnitTest&, int iteration) override {
    const auto seed = first_ + static_cast<unsigned>(iteration);
    setenv("CLUSTERKV_SIMT_SEED", std::to_string(seed).c_str(), 1);
  }

 private:
  unsigned long long first_;
};

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (const char* first = std::getenv("CLUSTERKV_SIMT_SEED")) {
    ::testing::UnitTest::GetInstance()->listeners().Append(
        new NextSeed(std::strtoull(first, nullptr, 10)));
  }
  return RUN_ALL_TESTS();
}
