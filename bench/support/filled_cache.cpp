// SPDX-License-Identifier: Apache-2.0
#include "bench/support/filled_cache.hpp"

#include <algorithm>
#include <bit>
#include <memory>

namespace clusterkv::bench {
namespace {

constexpr std::int64_t kAllBytes = std::int64_t{1} << 30;
constexpr int kChunk = 32768;  ///< tokens of a prompt in one plan
constexpr int kSteps = 4096;   ///< that a bench may take
constexpr std::int64_t kTokenElements = FilledCache::kKvHeads * FilledCache::kHeadDim;

int layers_for(const FilledShape& shape) {
  const std::int64_t bytes = FilledCache::kTokenBytes * shape.context * shape.batch;
  return static_cast<int>(std::clamp<std::int64_t>(kAllBytes / bytes, 1, 64));
}

CacheConfig config_for(const FilledShape& shape) {
  CacheConfig config = CacheConfig::standard({.num_layers = layers_for(shape),
                                              .num_q_heads = FilledCache::kKvHeads * shape.group,
                                              .num_kv_heads = FilledCache::kKvHeads,
                                              .head_dim = FilledCache::kHeadDim});
  config.cluster.tokens_per_cluster = shape.tokens_per_cluster;
  config.select.dense_layers = 0;
  config.select.dense_threshold = shape.dense_threshold;
  config.max_sequences = shape.batch;
  config.max_tokens = std::int64_t{shape.batch} * (shape.context + kSteps);
  return config;
}

PlanLimits limits_for(const FilledShape& shape) {
  return {shape.batch, std::max(shape.batch, std::min(kChunk, shape.context)),
          FilledCache::kMaxBudget};
}

std::uint32_t hash(std::uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15U;
  return static_cast<std::uint32_t>((x ^ (x >> 29)) * 0xbf58476d1ce4e5b9U >> 32);
}

/// Uniform in [0, 1).
float uniform(std::uint64_t x) {
  return static_cast<float>(hash(x) >> 8) * 0x1p-24F;
}

std::uint16_t to_bf16(float x) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 16);
}
float from_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

}  // namespace

Rows::Rows(std::size_t elements)
    : data_(static_cast<std::uint16_t*>(
          default_memory_resource().allocate(elements * 2, 64, Device{}))),
      elements_(elements) {}

Rows::~Rows() {
  default_memory_resource().deallocate(data_, elements_ * 2, 64, Device{});
}

FilledCache::FilledCache(const FilledShape& shape)
    : shape_(shape),
      layers_(layers_for(shape)),
      layer_tokens_(std::int64_t{shape.context} * shape.batch),
      num_q_heads_(kKvHeads * shape.group),
      keys_(static_cast<std::size_t>(layers_ * layer_tokens_ * kTokenElements)),
      values_(keys_.size()),
      cache_(config_for(shape)) {
  make_rows();
  make_queries();
  const auto needs =
      ClusterKVCache::memory_needs(cache_.config(), Backend::kCpu, limits_for(shape));
  scratch_.resize(needs.workspace_bytes + 64);
  void* data = scratch_.data();
  std::size_t room = scratch_.size();
  workspace_ = {std::align(64, needs.workspace_bytes, data, room), needs.workspace_bytes};
  for (int i = 0; i < shape.batch; ++i) rows_.push_back({.id = cache_.add_sequence()});
  fill();
}

/// Every 32 tokens have a topic, the same in all layers, and noise of about a third of its size.
void FilledCache::make_rows() {
  for (std::size_t i = 0; i < keys_.size(); ++i) {
    const std::uint64_t topic =
        i / (32 * kTokenElements) % static_cast<std::uint64_t>(layer_tokens_ / 32);
    keys_.data()[i] = to_bf16(4 * uniform(topic << 32 | i % kTokenElements) - 2 + uniform(~i));
    values_.data()[i] = to_bf16(2 * uniform(i) - 1);
  }
}

/// Each head asks for the topic of a token. At this scale about as many value means are read
/// as with recorded keys: a fifth of them.
void FilledCache::make_queries() {
  constexpr float kScale = 0.62F;
  out_.resize(static_cast<std::size_t>(shape_.batch * num_q_heads_ * kHeadDim));
  for (int number = 0; number < kQueries * shape_.batch * num_q_heads_; ++number) {
    const std::uint64_t token =
        hash(static_cast<std::uint64_t>(number)) % static_cast<std::uint64_t>(layer_tokens_);
    const auto kv_head = static_cast<std::uint64_t>(number % num_q_heads_ / shape_.group);
    const std::uint16_t* key = keys_.data() + (token * kKvHeads + kv_head) * kHeadDim;
    for (int d = 0; d < kHeadDim; ++d) queries_.push_back(kScale * from_bf16(key[d]));
  }
}

void FilledCache::fill() {
  for (int sequence = 0; sequence < shape_.batch; ++sequence) {
    for (int first = 0; first < shape_.context; first += kChunk) {
      const int count = std::min(kChunk, shape_.context - first);
      const Phase phase = first + count == shape_.context ? Phase::kPrefillLast : Phase::kPrefill;
      const StepRow row{rows_[static_cast<std::size_t>(sequence)].id, count, 0, phase};
      plan_ = cache_.plan({&row, 1}, limits_for(shape_), workspace_);
      for (int layer = 0; layer < layers_; ++layer) {
        const std::int64_t at =
            layer * layer_tokens_ + std::int64_t{sequence} * shape_.context + first;
        cache_.append(layer, plan_, tokens(keys_, at, count), tokens(values_, at, count));
      }
    }
  }
  plan_ = {};
}

TensorView FilledCache::tokens(const Rows& rows, std::int64_t first, std::int64_t count) {
  return contiguous_view(rows.data() + first * kTokenElements, DType::kBF16,
                         {count, kKvHeads, kHeadDim});
}

TensorView FilledCache::query() const {
  const std::size_t each = out_.size();
  return contiguous_view(queries_.data() + static_cast<std::size_t>(turn_ % kQueries) * each,
                         DType::kF32, {shape_.batch, num_q_heads_, kHeadDim});
}

AttentionOut FilledCache::out() const {
  return {contiguous_view(out_.data(), DType::kF32, {shape_.batch, num_q_heads_, kHeadDim})};
}

void FilledCache::step(int budget) {
  for (StepRow& row : rows_) row.budget_tokens = budget;
  if (plan_.num_rows() == 0) {
    plan_ = cache_.plan(rows_, limits_for(shape_), workspace_);
  } else {
    cache_.update(plan_, rows_);
  }
  for (int layer = 0; layer < layers_; ++layer) {
    cache_.append(layer, plan_, tokens(keys_, 0, shape_.batch), tokens(values_, 0, shape_.batch));
  }
}

void FilledCache::attend(Executor& executor) {
  cache_.attend(turn_ % layers_, plan_, {query(), out()}, {Backend::kCpu, nullptr, &executor});
  ++turn_;
}

void FilledCache::dense(Executor& executor, Layout layout) {
  const auto view = [&](const Rows& rows) {
    TensorView v =
        contiguous_view(rows.data() + turn_ % layers_ * layer_tokens_ * kTokenElements,
                        DType::kBF16, {shape_.batch, shape_.context, kKvHeads, kHeadDim});
    if (layout == Layout::kHnd) {
      v.stride[1] = kHeadDim;
      v.stride[2] = std::int64_t{shape_.context} * kHeadDim;
    }
    return v;
  };
  dense_decode({query(), view(keys_), view(values_)}, out(), {Backend::kCpu, nullptr, &executor});
  ++turn_;
}

FilledCache::Work FilledCache::work() {
  const StepStats s = cache_.stats().step;
  const auto lists = static_cast<double>(s.selections);
  const double heads = double{kKvHeads} * shape_.batch;
  const double per_attend = heads / lists;
  const Selection chosen = cache_.select(0, plan_, query());
  const auto* ids = static_cast<const std::int32_t*>(chosen.cluster_ids.data);
  const std::int64_t capacity = chosen.cluster_ids.shape[2];
  std::int64_t runs = 0;
  for (std::int64_t i = 0; i < capacity * shape_.batch * kKvHeads; ++i) {
    if (ids[i] >= 0 && (i % capacity == 0 || ids[i] != ids[i - 1] + 1)) ++runs;
  }
  const double row_bytes =
      static_cast<double>(s.row_bytes) / static_cast<double>(s.attended_tokens);
  return {.index_bytes = static_cast<double>(s.index_bytes) * per_attend,
          .value_mean_bytes = static_cast<double>(s.value_mean_bytes) * per_attend,
          .row_bytes = static_cast<double>(s.row_bytes) * per_attend,
          .run_bytes = static_cast<double>(s.selected_tokens) / lists * heads * row_bytes /
                       static_cast<double>(runs),
          .clusters = static_cast<double>(s.scored_clusters) / lists,
          .values = static_cast<double>(s.value_mean_bytes) / lists / (kHeadDim + 4)};
}

FilledCache& filled_cache(const FilledShape& shape) {
  static std::unique_ptr<FilledCache> made;
  static FilledShape made_shape;
  if (!made || !(shape == made_shape)) {
    made.reset();
    made = std::make_unique<FilledCache>(shape);
    made_shape = shape;
  }
  return *made;
}

}  // namespace clusterkv::bench
