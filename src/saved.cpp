// SPDX-License-Identifier: Apache-2.0
#include "src/saved.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <string_view>

#include "kernels/index/rules.hpp"
#include "src/runtime/check.hpp"

namespace clusterkv {

using runtime::fail;

static_assert(std::endian::native == std::endian::little, "stores are saved as they lie in memory");

namespace {

constexpr std::string_view kMagic = "CLUSTKV\x1a";
constexpr std::uint64_t kVersion = 2;

struct Field {
  const char* name;
  std::uint64_t value;
};

/// All that stored rows and the index depend on. Budgets, query heads and the tail may differ.
std::vector<Field> fields_of(const CacheConfig& c, Rows rows) {
  const auto number = [](auto value) { return static_cast<std::uint64_t>(value); };
  std::vector<Field> fields = {
      {"version", kVersion},
      {"rows of a page", kPageRows},
      {"clusters of a block", kBlockClusters},
      {"rows kept", rows == Rows::kKept ? 1U : 0U},
      {"model.num_layers", number(c.model.num_layers)},
      {"model.num_kv_heads", number(c.model.num_kv_heads)},
      {"model.head_dim", number(c.model.head_dim)},
      {"model.value_dim", number(c.model.value_dim)},
      {"model.kv_dtype", number(c.model.kv_dtype)},
      {"select.dense_layers", number(c.select.dense_layers)},
      {"cluster.tokens_per_cluster", number(c.cluster.tokens_per_cluster)},
      {"cluster.segment_tokens", number(c.cluster.segment_tokens)},
      {"cluster.window_tokens", number(c.cluster.window_tokens)},
      {"cluster.min_window_clusters", number(c.cluster.min_window_clusters)},
      {"cluster.kmeans_iterations", number(c.cluster.kmeans_iterations)},
      {"cluster.sink_tokens", number(c.cluster.sink_tokens)},
      {"cluster.seed", c.cluster.seed},
      {"cluster.metric", number(c.cluster.metric)},
      {"cluster.index_dtype", number(c.cluster.index_dtype)}};
  for (const int layer : c.model.layers) fields.push_back({"model.layers", number(layer)});
  return fields;
}

std::uint64_t read_number(BlockReader& reader) {
  std::uint64_t number = 0;
  reader.visit(std::as_writable_bytes(std::span(&number, 1)));
  return number;
}

void write_number(BlockWriter& writer, std::uint64_t number) {
  writer.visit(std::as_writable_bytes(std::span(&number, 1)));
}

/// Whether plan() makes segments of this size, and index blocks of this number for it.
bool is_possible(const ClusterConfig& c, const SegmentSize& size) {
  const bool has_rows = size.num_rows == c.segment_tokens || size.num_rows == c.window_tokens ||
                        (size.num_rows > c.window_tokens &&
                         (c.segment_tokens == 0 || size.num_rows < c.segment_tokens));
  return has_rows && std::ranges::any_of(std::array{Phase::kDecode, Phase::kPrefill}, [&](Phase p) {
           const int clusters = segment_clusters(c, size.num_rows, p);
           return size.num_blocks == index::blocks_of(clusters, kBlockClusters);
         });
}

}  // namespace

// ------------------------------------------------------------------------------------ blocks

void BlockWriter::visit(std::span<std::byte> part) {
  crc_.add(part);
  write_(part);
}

void BlockWriter::end_block() {
  const std::uint32_t crc = crc_.get();
  write_(std::as_bytes(std::span(&crc, 1)));
  crc_ = {};
}

void BlockReader::visit(std::span<std::byte> part) {
  read(part);
  crc_.add(part);
}

void BlockReader::end_block() {
  std::uint32_t wanted = 0;
  read(std::as_writable_bytes(std::span(&wanted, 1)));
  if (crc_.get() != wanted) {
    fail<FormatError>("read: checksum {:08x} before byte {}, expected {:08x}", crc_.get(), bytes_,
                      wanted);
  }
  crc_ = {};
}

void BlockReader::read(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t count = read_(bytes);
    if (count == 0) fail<FormatError>("read: ends after {} bytes, expected more", bytes_);
    if (count > bytes.size()) {
      fail<ValueError>("read: {} bytes of {}, expected no more", count, bytes.size());
    }
    bytes_ += static_cast<std::int64_t>(count);
    bytes = bytes.subspan(count);
  }
}

// -------------------------------------------------------------------------------------- head

void write_head(BlockWriter& writer, const CacheConfig& resolved, Rows rows, SavedHead head) {
  std::array<char, kMagic.size()> magic{};
  std::ranges::copy(kMagic, magic.begin());
  writer.visit(std::as_writable_bytes(std::span(magic)));
  for (const Field& field : fields_of(resolved, rows)) write_number(writer, field.value);
  write_number(writer, static_cast<std::uint64_t>(head.length));
  write_number(writer, static_cast<std::uint64_t>(head.num_segments));
  write_number(writer, static_cast<std::uint64_t>(head.values));
  writer.end_block();
}

SavedHead read_head(BlockReader& reader, const CacheConfig& resolved, Rows rows) {
  std::array<char, kMagic.size()> magic{};
  reader.visit(std::as_writable_bytes(std::span(magic)));
  if (!std::ranges::equal(magic, kMagic)) {
    fail<FormatError>("read: begins with other bytes, expected a saved sequence");
  }
  for (const Field& field : fields_of(resolved, rows)) {
    const std::uint64_t found = read_number(reader);
    if (found == field.value) continue;
    fail<FormatError>("read: saved with {} {}, expected {} as here", field.name, found,
                      field.value);
  }
  const std::uint64_t length = read_number(reader);
  const std::uint64_t segments = read_number(reader);
  const std::uint64_t values = read_number(reader);
  reader.end_block();
  constexpr std::uint64_t kMost = std::uint64_t{1} << 62;
  const auto is = [&](Values which) { return values == static_cast<std::uint64_t>(which); };
  const bool has_values =
      length == 0 ? is(Values::kUnknown)
                  : is(Values::kGiven) || (is(Values::kMissing) && rows == Rows::kElsewhere);
  if (length > kMost || segments > length || !has_values) {
    fail<FormatError>("read: {} tokens in {} segments, values {}, expected counts of a sequence",
                      length, segments, values);
  }
  return {static_cast<std::int64_t>(length), static_cast<std::int64_t>(segments),
          static_cast<Values>(values)};
}

// ---------------------------------------------------------------------------------- segments

void write_segments(BlockWriter& writer, const Sequence& sequence) {
  for (int i = 0; i < sequence.num_segments(); ++i) {
    SegmentSize size{sequence.segment(i).num_rows, sequence.segment(i).num_blocks};
    writer.visit(std::as_writable_bytes(std::span(&size, 1)));
  }
  writer.end_block();
}

std::vector<SegmentSize> read_segments(BlockReader& reader, const CacheConfig& resolved,
                                       const SavedHead& head) {
  const ClusterConfig& c = resolved.cluster;
  std::int64_t left = std::max<std::int64_t>(0, head.length - c.sink_tokens);
  if (head.num_segments > left) {
    fail<FormatError>("read: {} segments of {} tokens, expected fewer", head.num_segments, left);
  }
  std::vector<SegmentSize> sizes(static_cast<std::size_t>(head.num_segments));
  for (SegmentSize& size : sizes) {
    reader.visit(std::as_writable_bytes(std::span(&size, 1)));
    if (size.num_rows <= 0 || size.num_rows > left || !is_possible(c, size)) {
      fail<FormatError>(
          "read: a segment of {} tokens in {} blocks, expected one as clusters are here",
          size.num_rows, size.num_blocks);
    }
    left -= size.num_rows;
  }
  reader.end_block();
  return sizes;
}

}  // namespace clusterkv
