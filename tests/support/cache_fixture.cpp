// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cache_fixture.hpp"

#include <bit>
#include <cmath>
#include <cstddef>

namespace clusterkv::testing {
namespace {

constexpr int kTopics = 12;
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
      for (int d = 0; d < head_dim_; ++d) {
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
