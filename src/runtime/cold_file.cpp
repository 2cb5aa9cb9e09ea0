// SPDX-License-Identifier: Apache-2.0
#include "src/runtime/cold_file.hpp"

#include "src/runtime/check.hpp"

#ifdef __linux__
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <system_error>
#endif

namespace clusterkv::runtime {

void ColdFile::fail_fetch() const {
  fail<FileError>("store.cold_path: rows in the file in '{}' cannot be brought in", directory_);
}

#ifdef __linux__

namespace {

// Since Linux 5.14, and not in older headers.
constexpr int kPopulateRead = 22;   // MADV_POPULATE_READ
constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE

std::string text_of(int error) {
  return std::generic_category().message(error);
}

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const { return number_; }

 private:
  int number_;
};

/// A file that has no name; -1 and errno if there can be none.
int open_unnamed(const std::string& directory) {
  const int file = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return file;
  // File systems without such files, as those on a network.
  std::string name = directory + "/clusterkv-XXXXXX";
  const int named = mkostemp(name.data(), O_CLOEXEC);
  if (named >= 0) unlink(name.c_str());
  return named;
}

/// The whole pages around some bytes.
struct Pages {
  Pages(const std::byte* first, std::size_t count) {
    static const auto kPage = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<std::uintptr_t>(first);
    const std::uintptr_t before = begin % kPage;
    data = const_cast<std::byte*>(first) - before;
    bytes = (before + count + kPage - 1) / kPage * kPage;
  }
  std::byte* data;
  std::size_t bytes;
};

/// 0, or errno.
int populate(const Pages& pages, Access access) noexcept {
  const int advice = access == Access::kRead ? kPopulateRead : kPopulateWrite;
  while (madvise(pages.data, pages.bytes, advice) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

}  // namespace

const char* ColdFile::find_fault() noexcept {
  return nullptr;
}

void* ColdFile::allocate(std::size_t bytes, std::size_t, Device) {
  const Descriptor file(open_unnamed(directory_));
  if (file.get() < 0) {
    fail<FileError>("store.cold_path: '{}', expected a directory to make a file in: {}", directory_,
                    text_of(errno));
  }
  // Pages without a place on the disk would end the process when they are written.
  int error = 0;
  do {
    error = posix_fallocate(file.get(), 0, static_cast<off_t>(bytes));
  } while (error == EINTR);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    fail<OutOfMemory>("store.cold_path: '{}' has no room for {} bytes: {}", directory_, bytes,
                      text_of(error));
  }
  if (error != 0) {
    fail<FileError>("store.cold_path: '{}', no file of {} bytes: {}", directory_, bytes,
                    text_of(error));
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) {
    fail<OutOfMemory>("store.cold_path: no addresses for {} bytes: {}", bytes, text_of(errno));
  }
  madvise(data, bytes, MADV_RANDOM);  // what is read ahead is what was chosen, and no more
  error = populate({static_cast<std::byte*>(data), 1}, Access::kRead);
  if (error != 0) {
    munmap(data, bytes);
    fail<FileError>("store.cold_path: '{}', expected Linux 5.14 or later: {}", directory_,
                    text_of(error));
  }
  return data;
}

void ColdFile::deallocate(void* data, std::size_t bytes, std::size_t, Device) noexcept {
  munmap(data, bytes);
}

void ColdFile::expect(const std::byte* first, std::size_t bytes) noexcept {
  const Pages pages(first, bytes);
  madvise(pages.data, pages.bytes, MADV_WILLNEED);
}

bool ColdFile::fetch(const std::byte* first, std::size_t bytes, Access access) noexcept {
  return populate({first, bytes}, access) == 0;
}

#else

const char* ColdFile::find_fault() noexcept {
  return "store.cold_path: expected none, there are no cold stores on this system";
}
void* ColdFile::allocate(std::size_t, std::size_t, Device) {
  return nullptr;
}
void ColdFile::deallocate(void*, std::size_t, std::size_t, Device) noexcept {}
void ColdFile::expect(const std::byte*, std::size_t) noexcept {}
bool ColdFile::fetch(const std::byte*, std::size_t, Access) noexcept {
  return false;
}

#endif

}  // namespace clusterkv::runtime
