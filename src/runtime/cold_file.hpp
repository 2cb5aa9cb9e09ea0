// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "clusterkv/memory.hpp"

namespace clusterkv::runtime {

enum class Access : std::uint8_t { kRead, kWrite };

/// Memory that lies in a mapped file without a name: it may be larger than the machine's, and is gone
/// with its owner. The disk space is taken when it is allocated.
///
/// A page that the disk does not deliver ends the process when it is touched. So whoever touches memory
/// fetches it before, where an error can still be told (docs/decisions/009).
class ColdFile final : public MemoryResource {
 public:
  /// Why there can be none on this system, a static string; null if there can.
  static const char* find_fault() noexcept;

  /// \param directory  where files are made; not looked at before allocate()
  explicit ColdFile(std::string directory) : directory_(std::move(directory)) {}

  /// \throws FileError    if no file can be made there
  /// \throws OutOfMemory  if the disk is full
  void* allocate(std::size_t bytes, std::size_t alignment, Device device) override;
  void deallocate(void* data, std::size_t bytes, std::size_t alignment,
                  Device device) noexcept override;

  /// Begins to read bytes that a fetch() will ask for.
  static void expect(const std::byte* first, std::size_t bytes) noexcept;

  /// Brings bytes in, so that they may be touched. Whether they could be read.
  [[nodiscard]] static bool fetch(const std::byte* first, std::size_t bytes,
                                  Access access) noexcept;

  /// \throws FileError  of a fetch() that did not go well
  [[noreturn]] void fail_fetch() const;

 private:
  std::string directory_;
};

}  // namespace clusterkv::runtime
