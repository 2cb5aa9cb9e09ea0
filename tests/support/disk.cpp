// SPDX-License-Identifier: Apache-2.0
#include "tests/support/disk.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <stdexcept>

namespace {

constexpr int kPopulateRead = 22;
constexpr int kPopulateWrite = 23;

std::atomic<int> left{-1};  ///< requests before the one that fails; below 0: none fails
std::atomic<bool> failed{false};
std::atomic<int> newest{-1};  ///< file

bool fails_now() {
  if (left < 0 || left-- != 0) return false;
  failed = true;
  return true;
}

}  // namespace

extern "C" int posix_fallocate(int file, off_t offset, off_t length) {
  if (fails_now()) return ENOSPC;
  if (syscall(SYS_fallocate, file, 0, offset, length) != 0) return errno;
  const int before = newest.exchange(dup(file));
  if (before >= 0) close(before);
  return 0;
}

extern "C" int madvise(void* address, std::size_t length, int advice) noexcept {
  if ((advice == kPopulateRead || advice == kPopulateWrite) && fails_now()) {
    errno = EFAULT;
    return -1;
  }
  return static_cast<int>(syscall(SYS_madvise, address, length, advice));
}

namespace clusterkv::testing {

void fail_disk(int number) {
  failed = false;
  left = number;
}

bool end_failing_disk() {
  left = -1;
  return failed;
}

LostFile::LostFile() : file_(newest) {
  struct stat status {};
  if (fstat(file_, &status) != 0) throw std::runtime_error("no file was given room");
  content_.resize(static_cast<std::size_t>(status.st_size));
  const auto size = static_cast<ssize_t>(content_.size());
  if (pread(file_, content_.data(), content_.size(), 0) != size || ftruncate(file_, 0) != 0) {
    throw std::runtime_error("a file cannot be taken away");
  }
}

LostFile::~LostFile() {
  if (pwrite(file_, content_.data(), content_.size(), 0) < 0) std::abort();
}

Directory::Directory()
    : path_((std::filesystem::temp_directory_path() / "clusterkv-test-XXXXXX").string()) {
  if (mkdtemp(path_.data()) == nullptr) throw std::runtime_error("no directory " + path_);
}

Directory::~Directory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

bool Directory::is_empty() const {
  return std::filesystem::is_empty(path_);
}

}  // namespace clusterkv::testing
