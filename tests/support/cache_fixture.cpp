// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cache_fixture.hpp"

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "tests/reference/numeric.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kTopics = 12;
constexpr std::byte kPattern{0x7d};

reference::SmallFloat format_of(DType dtype) {
  return dtype == DType::kF16 ? reference::kF16Format : reference::kBF16Format;
}

enum Kind : std::uint64_t { kTopic, kKey, kValue, kQuery };

std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 31)) * 0x7fb5d329728ea185U;
  x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44dU;
  return x ^ (x >> 33);
}

std::uint64_t hash(std::initializer_list<std::uint64_t> parts) {
  std::uint64_t state = 0x9e3779b97f4a7c15U;
  for (const std::uint64_t part : parts) state = mix(state + part + 1);
  return state;
}

/// About normal: the sum of four uniform draws.
float draw(std::uint64_t& state) {
  float sum = -2.0F;
  for (int i = 0; i < 4; ++i) {
    state = mix(state + 0x9e3779b97f4a7c15U);
    sum += static_cast<float>(state >> 40) / 16777216.0F;
  }
  return 1.732F * sum;
}

}  // namespace

TokenSource::TokenSource(const ModelShape& model, std::uint64_t seed)
    : num_q_heads_(model.num_q_heads),
      num_kv_heads_(model.num_kv_heads),
      head_dim_(model.head_dim),
      value_dim_(value_dim_of(model)),
      seed_(seed) {}

std::vector<float> TokenSource::rows(int layer, std::int64_t first, std::int64_t last,
                                     std::uint64_t kind) const {
  const int heads = kind == kQuery ? num_q_heads_ : num_kv_heads_;
  const int group = kind == kQuery ? num_q_heads_ / num_kv_heads_ : 1;
  std::vector<float> result;
  for (std::int64_t token = first; token < last; ++token) {
    for (int head = 0; head < heads; ++head) {
      const auto l = static_cast<std::uint64_t>(layer);
      const auto t = static_cast<std::uint64_t>(token);
      const auto h = static_cast<std::uint64_t>(head);
      std::uint64_t noise = hash({seed_, kind, l, t, h});
      // Neighbours share a topic, as words of a sentence do; the heads of a group ask for the same.
      const std::uint64_t topic =
          hash({seed_, kind == kQuery ? kQuery : kKey, t / 5, h / std::uint64_t(group)}) % kTopics;
      std::uint64_t center = hash({seed_, kTopic, l, h / std::uint64_t(group), topic});
      for (int d = 0; d < (kind == kValue ? value_dim_ : head_dim_); ++d) {
        const float shared = kind == kValue ? 0.0F : draw(center);
        result.push_back(0.8F * shared + 0.7F * draw(noise));
      }
    }
  }
  return result;
}

std::vector<float> TokenSource::keys(int layer, std::int64_t first, std::int64_t last) const {
  return rows(layer, first, last, kKey);
}

std::vector<float> TokenSource::values(int layer, std::int64_t first, std::int64_t last) const {
  return rows(layer, first, last, kValue);
}

std::vector<float> TokenSource::query(int layer, std::int64_t position) const {
  return rows(layer, position, position + 1, kQuery);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) return false;
  }
  return true;
}

bool same_bits(const std::vector<Output>& a, const std::vector<Output>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!same_bits(a[i].out, b[i].out) || !same_bits(a[i].lse, b[i].lse)) return false;
  }
  return true;
}

double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double{a[i]} - double{b[i]}, 2);
    norm += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

// ------------------------------------------------------------------------------- typed tensors

TypedTensor::TypedTensor(std::array<std::int64_t, 3> shape, DType dtype, Layout layout) {
  const auto [rows, heads, dim] = shape;
  view_ = contiguous_view(nullptr, dtype, {rows, heads, dim});
  if (layout == Layout::kByHead) view_.stride = {dim, rows * dim, 1};
  if (layout == Layout::kPadded) view_.stride = {heads * (dim + 3) + 5, dim + 3, 1};
  if (layout == Layout::kStrided) view_.stride = {heads * dim * 2, dim * 2, 2};
  std::int64_t last = 0;
  for (std::size_t axis = 0; axis < 3; ++axis) last += (shape[axis] - 1) * view_.stride[axis];
  const std::int64_t elements = rows * heads * dim > 0 ? last + 1 : 1;
  bytes_.assign(static_cast<std::size_t>(elements) * size_of(dtype), kPattern);
  view_.data = bytes_.data();
}

/// Bytes from the start of the tensor to an element, counted row-major.
std::size_t TypedTensor::offset(std::size_t element) const {
  const auto heads = static_cast<std::size_t>(view_.shape[1]);
  const auto dim = static_cast<std::size_t>(view_.shape[2]);
  const std::size_t index[] = {element / dim / heads, element / dim % heads, element % dim};
  std::size_t at = 0;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    at += index[axis] * static_cast<std::size_t>(view_.stride[axis]);
  }
  return at * size_of(view_.dtype);
}

void TypedTensor::write(const std::vector<float>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::byte* to = bytes_.data() + offset(i);
    if (view_.dtype == DType::kF32) {
      std::memcpy(to, &values[i], sizeof values[i]);
    } else {
      const std::uint16_t bits = reference::encode(format_of(view_.dtype), double{values[i]});
      std::memcpy(to, &bits, sizeof bits);
    }
  }
}

std::vector<double> TypedTensor::read() const {
  std::vector<double> values;
  const auto count = static_cast<std::size_t>(view_.shape[0] * view_.shape[1] * view_.shape[2]);
  for (std::size_t i = 0; i < count; ++i) {
    const std::byte* from = bytes_.data() + offset(i);
    float value = 0;
    std::uint16_t bits = 0;
    std::memcpy(&value, from, view_.dtype == DType::kF32 ? sizeof value : 0);
    std::memcpy(&bits, from, sizeof bits);
    values.push_back(view_.dtype == DType::kF32 ? double{value}
                                                : reference::decode(format_of(view_.dtype), bits));
  }
  return values;
}

bool TypedTensor::gaps_untouched() const {
  std::vector<bool> used(bytes_.size());
  const auto count = static_cast<std::size_t>(view_.shape[0] * view_.shape[1] * view_.shape[2]);
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t b = 0; b < size_of(view_.dtype); ++b) used[offset(i) + b] = true;
  }
  for (std::size_t b = 0; b < bytes_.size(); ++b) {
    if (!used[b] && bytes_[b] != kPattern) return false;
  }
  return true;
}

Output output_row(const Output& batch, int query_row, int num_q_heads) {
  const auto rows = batch.lse.size() / static_cast<std::size_t>(num_q_heads);
  const auto cut = [&](const std::vector<float>& all) {
    const auto width = static_cast<std::ptrdiff_t>(all.size() / rows);
    return std::vector<float>(all.begin() + query_row * width,
                              all.begin() + (query_row + 1) * width);
  };
  return {cut(batch.out), cut(batch.lse)};
}

}  // namespace clusterkv::testing
