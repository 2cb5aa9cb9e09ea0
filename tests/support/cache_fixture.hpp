// SPDX-License-Identifier: Apache-2.0
//
// Caches fed with tokens that depend on nothing but their place, so that the same sequence can be
// lived alone, in a batch, or cut into other chunks.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "tests/support/harness.hpp"

namespace clusterkv::testing {

/// Keys, values and queries of one sequence. Keys lie around a few topics, queries look for some.
class TokenSource {
 public:
  TokenSource() = default;
  TokenSource(const ModelShape& model, std::uint64_t seed);

  /// [last - first, num_kv_heads, head_dim], and of value_dim
  [[nodiscard]] std::vector<float> keys(int layer, std::int64_t first, std::int64_t last) const;
  [[nodiscard]] std::vector<float> values(int layer, std::int64_t first, std::int64_t last) const;
  /// [num_q_heads, head_dim]
  [[nodiscard]] std::vector<float> query(int layer, std::int64_t position) const;

 private:
  [[nodiscard]] std::vector<float> rows(int layer, std::int64_t first, std::int64_t last,
                                        std::uint64_t kind) const;

  int num_q_heads_ = 0;
  int num_kv_heads_ = 0;
  int head_dim_ = 0;
  int value_dim_ = 0;
  std::uint64_t seed_ = 0;
};

/// Whether two results are the same bits; unlike ==, it tells 0 from -0 and knows NaN.
bool same_bits(const std::vector<float>& a, const std::vector<float>& b);
bool same_bits(const std::vector<Output>& a, const std::vector<Output>& b);

/// |a - b| / |b|.
double relative_difference(const std::vector<float>& a, const std::vector<float>& b);

/// The query rows of one plan row, cut out of a batch's output.
Output output_row(const Output& batch, int query_row, int num_q_heads);

/// Numbers in any dtype and layout, as an engine may hand them in or want them back.
class TypedTensor {
 public:
  enum class Layout : std::uint8_t {
    kDense,    ///< [row, head, dim]
    kByHead,   ///< [head, row, dim]: HND
    kPadded,   ///< rows and heads with unused elements between them
    kStrided,  ///< the last axis too has a stride; only where the API allows it
  };
  static constexpr int kLayouts = 4;

  /// Filled with a pattern that is no number a test uses.
  TypedTensor(std::array<std::int64_t, 3> shape, DType dtype, Layout layout);

  void write(const std::vector<float>& values);
  /// As stored: rounded to the dtype.
  [[nodiscard]] std::vector<double> read() const;
  [[nodiscard]] const TensorView& view() const { return view_; }
  /// Whether all elements between rows still hold the pattern.
  [[nodiscard]] bool gaps_untouched() const;

 private:
  [[nodiscard]] std::size_t offset(std::size_t element) const;

  std::vector<std::byte> bytes_;
  TensorView view_;
};

/// A cache or selector whose sequences each have a TokenSource.
template <class Cache>
class Driver : public Harness<Cache> {
 public:
  using Harness<Cache>::cache;
  using Harness<Cache>::plan;
  using Outputs = std::vector<Output>;  ///< [layer]

  Driver(const CacheConfig& config, const PlanLimits& limits = {4, 1024, 0},
         const Resources& resources = {}, const AsyncStream& async = {})
      : Harness<Cache>(config, limits, resources, async) {}

  /// `seed` names the sequence's data.
  SequenceId add(std::uint64_t seed) {
    const SequenceId id = cache.add_sequence();
    sources_[id] = TokenSource(cache.config().model, seed);
    return id;
  }

  /// The fork's tokens to come are the parent's, unless it is told otherwise.
  SequenceId fork(SequenceId parent, std::int64_t num_tokens = -1) {
    const SequenceId id = cache.fork(parent, num_tokens, this->stream_or_own({}));
    sources_[id] = sources_.at(parent);
    return id;
  }
  /// Tokens to come are those of another source.
  void reseed(SequenceId id, std::uint64_t seed) {
    sources_[id] = TokenSource(cache.config().model, seed);
  }

  void begin(const std::vector<StepRow>& rows) {
    Harness<Cache>::begin(rows);
    rows_ = rows;
  }

  void append(int layer, Stream stream = {}) {
    const auto [key, value] = new_rows(layer);
    Harness<Cache>::append(layer, key, value, stream);
  }

  /// Keys and values of the step's new tokens.
  std::pair<std::vector<float>, std::vector<float>> new_rows(int layer) {
    std::vector<float> key, value;
    for (const StepRow& row : rows_) {
      const auto vectors = static_cast<std::size_t>(row.num_new_tokens * model().num_kv_heads);
      const auto padding = [&](int dim) {
        return std::vector<float>(vectors * static_cast<std::size_t>(dim));
      };
      const std::int64_t last = row.id == kNoSequence ? 0 : cache.length(row.id);
      const std::int64_t first = last - row.num_new_tokens;
      const bool pad = row.id == kNoSequence;
      extend(key, pad ? padding(model().head_dim) : sources_[row.id].keys(layer, first, last));
      extend(value,
             pad ? padding(value_dim_of(model())) : sources_[row.id].values(layer, first, last));
    }
    return {key, value};
  }

  /// [query rows, num_q_heads, head_dim], of the last tokens of each row
  std::vector<float> queries(int layer) {
    const ModelShape& m = cache.config().model;
    std::vector<float> all;
    for (const StepRow& row : rows_) {
      for (int left = row.num_query_tokens; left > 0; --left) {
        const auto size = static_cast<std::size_t>(m.num_q_heads * m.head_dim);
        extend(all, row.id == kNoSequence
                        ? std::vector<float>(size)
                        : sources_[row.id].query(layer, cache.length(row.id) - left));
      }
    }
    return all;
  }

  void append_all(Stream stream = {}) {
    for (int layer = 0; layer < cache.config().model.num_layers; ++layer) append(layer, stream);
  }

  /// All tokens of a sequence so far, [token, num_kv_heads, head_dim or value_dim].
  std::vector<float> all_keys(SequenceId id, int layer) {
    return sources_[id].keys(layer, 0, cache.length(id));
  }
  std::vector<float> all_values(SequenceId id, int layer) {
    return sources_[id].values(layer, 0, cache.length(id));
  }

  /// One step of all layers.
  Outputs step(const std::vector<StepRow>& rows, Stream stream = {}) {
    begin(rows);
    Outputs outputs;
    for (int layer = 0; layer < cache.config().model.num_layers; ++layer) {
      append(layer, stream);
      outputs.push_back(Harness<Cache>::attend(layer, queries(layer), stream));
    }
    return outputs;
  }

  /// A prompt in chunks, without queries; the last one ends the prompt.
  void prefill(SequenceId id, int num_tokens, int chunk = 1024, Stream stream = {}) {
    for (int done = 0; done < num_tokens; done += chunk) {
      const int size = std::min(chunk, num_tokens - done);
      const bool last = done + size == num_tokens;
      begin({{id, size, 0, last ? Phase::kPrefillLast : Phase::kPrefill}});
      append_all(stream);
    }
  }

  Outputs decode(SequenceId id, Stream stream = {}) { return step({{.id = id}}, stream); }

  Selection select(int layer) {
    const std::vector<float> query = queries(layer);
    const Selection selection =
        cache.select(layer, plan, this->query_view(query), this->stream_or_own({}));
    this->wait();
    return selection;
  }

 private:
  static void extend(std::vector<float>& all, const std::vector<float>& more) {
    all.insert(all.end(), more.begin(), more.end());
  }
  const ModelShape& model() const { return cache.config().model; }

  std::map<SequenceId, TokenSource> sources_;
  std::vector<StepRow> rows_;
};

}  // namespace clusterkv::testing
