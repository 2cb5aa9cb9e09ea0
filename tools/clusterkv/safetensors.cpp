// SPDX-License-Identifier: Apache-2.0
#include "tools/clusterkv/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "clusterkv/error.hpp"

namespace clusterkv::tool {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw FormatError("safetensors: " + fmt::format(format, std::forward<Args>(args)...));
}

json parse_header(const std::vector<std::byte>& bytes) {
  std::uint64_t size = 0;
  if (bytes.size() < sizeof(size)) fail("{} bytes, expected at least 8", bytes.size());
  std::memcpy(&size, bytes.data(), sizeof(size));
  const std::uint64_t room = bytes.size() - sizeof(size);
  if (size > room || size > kMaxHeaderBytes) {
    fail("header length {}, expected at most {}", size, std::min(room, kMaxHeaderBytes));
  }
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + sizeof(size);
  json header = json::parse(text, text + size, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) fail("header is not a JSON object");
  return header;
}

DType parse_dtype(const std::string& name, const json& entry) {
  const auto text = entry.value("dtype", json());
  if (text == "F32") return DType::kF32;
  if (text == "F16") return DType::kF16;
  if (text == "BF16") return DType::kBF16;
  if (text == "I32") return DType::kI32;
  fail("{}: dtype {}, expected F32, F16, BF16 or I32", name, text.dump());
}

struct Range {
  std::uint64_t begin;
  std::uint64_t end;
  std::string name;
};

Range parse_range(const std::string& name, const json& entry, std::uint64_t data_bytes) {
  const auto offsets = entry.value("data_offsets", json());
  const bool pair = offsets.is_array() && offsets.size() == 2 && offsets[0].is_number_unsigned() &&
                    offsets[1].is_number_unsigned();
  if (!pair) fail("{}: data_offsets {}, expected two numbers", name, offsets.dump());
  Range range{offsets[0].get<std::uint64_t>(), offsets[1].get<std::uint64_t>(), name};
  if (range.begin > range.end || range.end > data_bytes) {
    fail("{}: data_offsets {}, expected ascending within {} bytes", name, offsets.dump(),
         data_bytes);
  }
  return range;
}

/// Fills shape and stride; returns the bytes of the tensor.
std::uint64_t parse_shape(const std::string& name, const json& entry, TensorView& view) {
  const auto shape = entry.value("shape", json());
  if (!shape.is_array() || shape.size() > TensorView::kMaxRank) {
    fail("{}: shape {}, expected at most {} numbers", name, shape.dump(), TensorView::kMaxRank);
  }
  std::uint64_t bytes = size_of(view.dtype);
  view.rank = static_cast<int>(shape.size());
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    const bool number = shape[axis].is_number_unsigned();
    const std::uint64_t extent = number ? shape[axis].get<std::uint64_t>() : 0;
    if (!number || extent > std::uint64_t{1} << 40) {
      fail("{}: shape {}, expected numbers up to 2^40", name, shape.dump());
    }
    view.shape[axis] = static_cast<std::int64_t>(extent);
    view.stride[axis] = static_cast<std::int64_t>(bytes / size_of(view.dtype));
    if (__builtin_mul_overflow(bytes, extent, &bytes) || bytes >> 62 != 0) {
      fail("{}: shape {}, expected fewer than 2^62 bytes", name, shape.dump());
    }
  }
  return bytes;
}

void check_overlap(std::vector<Range> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[i - 1].end) {
      fail("{}: begins at {}, expected after {} which ends at {}", ranges[i].name, ranges[i].begin,
           ranges[i - 1].name, ranges[i - 1].end);
    }
  }
}

}  // namespace

SafeTensors parse_safetensors(std::vector<std::byte> bytes) {
  SafeTensors file;
  file.bytes = std::move(bytes);
  const json header = parse_header(file.bytes);
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.bytes.data(), sizeof(header_bytes));
  const std::uint64_t data_at = sizeof(header_bytes) + header_bytes;
  std::vector<Range> ranges;
  for (const auto& [name, entry] : header.items()) {
    if (!entry.is_object()) fail("{}: not a JSON object", name);
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) fail("__metadata__: {} is not a string", key);
        file.metadata[key] = value.get<std::string>();
      }
      continue;
    }
    TensorView view;
    view.dtype = parse_dtype(name, entry);
    const Range range = parse_range(name, entry, file.bytes.size() - data_at);
    const std::uint64_t needed = parse_shape(name, entry, view);
    if (needed != range.end - range.begin) {
      fail("{}: {} bytes of data, expected {} by its shape", name, range.end - range.begin, needed);
    }
    view.data = file.bytes.data() + data_at + range.begin;
    file.tensors[name] = view;
    ranges.push_back(range);
  }
  check_overlap(std::move(ranges));
  return file;
}

SafeTensors read_safetensors(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  std::ifstream stream(path, std::ios::binary);
  if (error || !stream) fail("{}: can't be read", path);
  std::vector<std::byte> bytes(size);
  stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
  if (static_cast<std::uintmax_t>(stream.gcount()) != size) fail("{}: cut off", path);
  return parse_safetensors(std::move(bytes));
}

}  // namespace clusterkv::tool
