// SPDX-License-Identifier: Apache-2.0
//
// A saved sequence: blocks of little-endian numbers and rows, each followed by its CRC-32.
//
//   head      magic, version, what the cache must be like, length, counts
//   segments  rows and index blocks of each
//   planes    for each layer and KV head: live rows, stored rows with positions, index, records
//
// No block says how long it is: that follows from the head and the segments, which are checked before
// memory is taken.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "clusterkv/config.hpp"
#include "clusterkv/saved.hpp"
#include "src/needs.hpp"
#include "src/runtime/crc32.hpp"
#include "src/sequence.hpp"
#include "src/stages.hpp"

namespace clusterkv {

/// What appends gave values, so far.
enum class Values : std::uint8_t { kUnknown, kGiven, kMissing };

struct SavedHead {
  std::int64_t length;
  std::int64_t num_segments;
  Values values;
};

class BlockWriter final : public PartVisitor {
 public:
  explicit BlockWriter(const WriteFn& write) : write_(write) {}
  void visit(std::span<std::byte> part) override;
  [[nodiscard]] bool fills_parts() const override { return false; }
  void end_block() override;

 private:
  const WriteFn& write_;
  runtime::Crc32 crc_;
};

class BlockReader final : public PartVisitor {
 public:
  explicit BlockReader(const ReadFn& read) : read_(read) {}
  /// \throws FormatError  if there are not so many bytes
  void visit(std::span<std::byte> part) override;
  [[nodiscard]] bool fills_parts() const override { return true; }
  /// \throws FormatError  if the checksum is another
  void end_block() override;

 private:
  void read(std::span<std::byte> bytes);

  const ReadFn& read_;
  runtime::Crc32 crc_;
  std::int64_t bytes_ = 0;
};

void write_head(BlockWriter& writer, const CacheConfig& resolved, Rows rows, SavedHead head);

/// \throws FormatError  if this is no saved sequence, or of another version or kind of cache
SavedHead read_head(BlockReader& reader, const CacheConfig& resolved, Rows rows);

void write_segments(BlockWriter& writer, const Sequence& sequence);

/// \throws FormatError  if they are not as a sequence of the head's length may have them
std::vector<SegmentSize> read_segments(BlockReader& reader, const CacheConfig& resolved,
                                       const SavedHead& head);

}  // namespace clusterkv
