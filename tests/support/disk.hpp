// SPDX-License-Identifier: Apache-2.0
//
// The disk under cold stores, which fails where it is told to. It takes the place of posix_fallocate() and
// madvise() in the programs that use it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace clusterkv::testing {

/// From now on the `number`-th request from 0, for room or for pages, of any thread, fails, once.
void fail_disk(int number);
/// Ends that. Whether it has failed.
bool end_failing_disk();

/// The newest file that was given room. While it exists it is not there for the library.
class LostFile {
 public:
  LostFile();
  ~LostFile();
  LostFile(const LostFile&) = delete;
  LostFile& operator=(const LostFile&) = delete;

 private:
  int file_;
  std::vector<std::byte> content_;
};

/// A directory of its own, gone with its owner.
class Directory {
 public:
  Directory();
  ~Directory();
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] bool is_empty() const;

 private:
  std::string path_;
};

}  // namespace clusterkv::testing
