// SPDX-License-Identifier: Apache-2.0
#include "tools/clusterkv/synth.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "clusterkv/error.hpp"
#include "tools/clusterkv/half.hpp"

namespace clusterkv::tool {
namespace {

constexpr int kTopics = 256;
constexpr int kRunTokens = 32;  ///< tokens on one topic

enum class Part : std::uint8_t { kKey, kValue, kQuery, kTopic, kPick };

/// Numbers that depend on their place alone, so that a file can be written in any order.
class Noise {
 public:
  Noise(std::uint64_t seed, int layer, Part part) {
    state_ = mix(mix(seed ^ static_cast<std::uint64_t>(layer)) ^ static_cast<std::uint64_t>(part));
  }
  [[nodiscard]] std::uint64_t bits(std::uint64_t place) const { return mix(state_ ^ mix(place)); }

  /// Mean 0, variance 1: the sum of four 16-bit uniforms. No libm, so the same everywhere.
  [[nodiscard]] float normal(std::uint64_t place) const {
    std::uint64_t draw = bits(place);
    std::int64_t sum = 0;
    for (int i = 0; i < 4; ++i, draw >>= 16) sum += static_cast<std::int64_t>(draw & 0xffff);
    return static_cast<float>(sum - 131070) * 2.6429e-5F;  // sqrt(3) / 65535
  }

 private:
  static std::uint64_t mix(std::uint64_t z) {
    z += 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  std::uint64_t state_;
};

class Writer {
 public:
  Writer(const std::string& path, const SynthOptions& options, const Progress& progress)
      : options_(options),
        path_(path),
        progress_(progress),
        stream_(path, std::ios::binary | std::ios::trunc) {}

  void run() {
    write_header();
    for (int layer = 0; layer < options_.layers; ++layer) {
      write_tensor(layer, Part::kKey, 0, options_.tokens, options_.kv_heads);
      write_tensor(layer, Part::kValue, 0, options_.tokens, options_.kv_heads);
      write_tensor(layer, Part::kQuery, options_.tokens - options_.queries, options_.tokens,
                   options_.q_heads);
    }
    stream_.flush();
    if (!stream_) throw FormatError(fmt::format("synth: {} can't be written", path_));
  }

 private:
  void write_header() {
    nlohmann::ordered_json header;
    header["__metadata__"] = {
        {"model", "none: synthetic keys, values and queries; says nothing about any model"},
        {"softmax_scale", fmt::format("{}", 1.0 / std::sqrt(options_.head_dim))},
        {"query_start", std::to_string(options_.tokens - options_.queries)},
        {"query_heads", std::to_string(options_.q_heads)},
        {"kv_heads", std::to_string(options_.kv_heads)},
        {"head_dim", std::to_string(options_.head_dim)},
        {"seed", std::to_string(options_.seed)}};
    std::uint64_t at = 0;
    const auto add = [&](int layer, const char* name, std::int64_t rows, int heads) {
      const auto bytes = static_cast<std::uint64_t>(rows * heads * options_.head_dim * 2);
      header[fmt::format("layers.{}.{}", layer, name)] = {
          {"dtype", "F16"},
          {"shape", {rows, heads, options_.head_dim}},
          {"data_offsets", {at, at + bytes}}};
      at += bytes;
    };
    for (int layer = 0; layer < options_.layers; ++layer) {
      add(layer, "key", options_.tokens, options_.kv_heads);
      add(layer, "value", options_.tokens, options_.kv_heads);
      add(layer, "query", options_.queries, options_.q_heads);
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const std::uint64_t size = text.size();
    stream_.write(reinterpret_cast<const char*>(&size), sizeof(size));
    stream_.write(text.data(), static_cast<std::streamsize>(text.size()));
  }

  void write_tensor(int layer, Part part, std::int64_t first, std::int64_t last, int heads) {
    std::vector<std::uint16_t> row(static_cast<std::size_t>(heads * options_.head_dim));
    const double tokens =
        static_cast<double>(options_.layers * (2 * options_.tokens + options_.queries));
    for (std::int64_t token = first; token < last; ++token) {
      if (done_++ % 1024 == 0) progress_(static_cast<double>(done_) / tokens);
      for (int head = 0; head < heads; ++head) {
        fill(layer, part, token, head,
             row.data() + static_cast<std::ptrdiff_t>(head) * options_.head_dim);
      }
      stream_.write(reinterpret_cast<const char*>(row.data()),
                    static_cast<std::streamsize>(row.size() * sizeof(row[0])));
    }
  }

  void fill(int layer, Part part, std::int64_t token, int head, std::uint16_t* out) const {
    const Noise noise(options_.seed, layer, part);
    const Noise topics(options_.seed, layer, Part::kTopic);
    const bool query = part == Part::kQuery;
    const int kv_head = query ? head / (options_.q_heads / options_.kv_heads) : head;
    // Keys stay on a topic for a run of tokens; each query looks for one of its own.
    const Noise pick(options_.seed, layer, query ? Part::kQuery : Part::kPick);
    const auto run = static_cast<std::uint64_t>(query ? token : token / kRunTokens);
    const std::uint64_t topic = pick.bits(run * 4096 + static_cast<std::uint64_t>(head)) % kTopics;
    for (int d = 0; d < options_.head_dim; ++d) {
      const auto column = static_cast<std::uint64_t>(d);
      const std::uint64_t center =
          (topic * 4096 + static_cast<std::uint64_t>(kv_head)) * 4096 + column;
      const std::uint64_t place =
          (static_cast<std::uint64_t>(token) * 4096 + static_cast<std::uint64_t>(head)) * 4096 +
          column;
      const float spread = part == Part::kKey && d % 32 == 5 ? 8.0F : 1.0F;  // outlier channels
      const float mean = part == Part::kValue ? 0.0F : topics.normal(center);
      out[d] = float_to_f16(spread * (mean + 0.7F * noise.normal(place)));
    }
  }

  const SynthOptions& options_;
  const std::string& path_;
  const Progress& progress_;
  std::int64_t done_ = 0;  ///< tokens of tensors
  std::ofstream stream_;
};

void check(bool ok, const char* what, std::int64_t value) {
  if (!ok) throw ConfigError(fmt::format("{}, got {}", what, value));
}

}  // namespace

void write_synth(const std::string& path, const SynthOptions& o, const Progress& progress) {
  check(o.tokens >= 2 && o.tokens <= 1 << 20, "--tokens: expected 2 .. 1048576", o.tokens);
  check(o.queries >= 1 && o.queries < o.tokens, "--queries: expected 1 .. tokens - 1", o.queries);
  check(o.layers >= 1 && o.layers <= 128, "--layers: expected 1 .. 128", o.layers);
  check(o.kv_heads >= 1 && o.kv_heads <= 256, "--kv-heads: expected 1 .. 256", o.kv_heads);
  check(o.q_heads >= 1 && o.q_heads <= 1024 && o.q_heads % o.kv_heads == 0,
        "--q-heads: expected a multiple of kv-heads up to 1024", o.q_heads);
  check(o.head_dim >= 1 && o.head_dim <= 256, "--head-dim: expected 1 .. 256", o.head_dim);
  Writer(path, o, progress).run();
}

}  // namespace clusterkv::tool
