// SPDX-License-Identifier: Apache-2.0
#include "src/runtime/cold_file.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "src/runtime/buffer.hpp"
#include "tests/support/disk.hpp"
#include "tests/support/errors.hpp"

namespace clusterkv::runtime {
namespace {

using testing::Directory;
using testing::expect_error;
using testing::LostFile;

constexpr std::size_t kBytes = 100000;

TEST(ColdFile, IsMemoryWithoutAName) {
  const Directory directory;
  ColdFile file(directory.path());
  Buffer memory(file, kBytes, "rows");
  ASSERT_TRUE(ColdFile::fetch(memory.data(), kBytes, Access::kWrite));
  std::memset(memory.data(), 7, kBytes);
  ColdFile::expect(memory.data(), kBytes);
  ASSERT_TRUE(ColdFile::fetch(memory.data() + 5000, 17, Access::kRead));
  EXPECT_EQ(memory.data()[5016], std::byte{7});
  EXPECT_TRUE(directory.is_empty());
  Buffer other(file, kBytes, "rows");
  ASSERT_TRUE(ColdFile::fetch(other.data(), kBytes, Access::kWrite));
  other.data()[0] = std::byte{1};
  EXPECT_EQ(memory.data()[0], std::byte{7});
}

TEST(ColdFile, NeedsADirectoryWithRoom) {
  const Directory directory;
  const std::string named = directory.path() + "/file";
  std::ofstream(named) << "a file";
  for (const std::string& path : {directory.path() + "/none", named}) {
    ColdFile file(path);
    expect_error<FileError>([&] { (void)file.allocate(kBytes, 64, {}); },
                            "store.cold_path: '" + path);
  }
  ColdFile file(directory.path());
  expect_error<OutOfMemory>([&] { (void)file.allocate(std::size_t{1} << 60, 64, {}); },
                            "has no room for 1152921504606846976 bytes");
}

TEST(ColdFile, SaysWhatTheDiskDoesNotDeliver) {
  const Directory directory;
  ColdFile file(directory.path());
  Buffer memory(file, kBytes, "rows");
  ASSERT_TRUE(ColdFile::fetch(memory.data(), kBytes, Access::kWrite));
  std::memset(memory.data(), 7, kBytes);
  {
    const LostFile lost;
    EXPECT_FALSE(ColdFile::fetch(memory.data(), kBytes, Access::kRead));
    EXPECT_FALSE(ColdFile::fetch(memory.data() + 50000, 1, Access::kRead));
    EXPECT_FALSE(ColdFile::fetch(memory.data() + 50000, 1, Access::kWrite));
    expect_error<FileError>([&] { file.fail_fetch(); }, directory.path());
  }
  ASSERT_TRUE(ColdFile::fetch(memory.data(), kBytes, Access::kRead));
  EXPECT_EQ(memory.data()[50000], std::byte{7});
}

}  // namespace
}  // namespace clusterkv::runtime
