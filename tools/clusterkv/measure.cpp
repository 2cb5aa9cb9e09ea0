// SPDX-License-Identifier: Apache-2.0
#include "tools/clusterkv/measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "clusterkv/attention.hpp"

namespace clusterkv::tool {
namespace {

constexpr int kRetainSteps[] = {1, 2, 3, 4, 8};

template <class Fn>
double time_us(const Fn& fn) {
  const auto start = std::chrono::steady_clock::now();
  fn();
  const auto end = std::chrono::steady_clock::now();
  return std::chrono::duration<double, std::micro>(end - start).count();
}

/// Until results are there.
void wait_for(const ClusterKVCache& cache) {
  static_cast<void>(cache.stats());
}

float dot(const float* a, const float* b, int count) {
  float sum = 0.0F;
  for (int i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

/// Share of the `count` largest of logits[first, last) that is attended; 1 if there are none, as in
/// a prompt of sinks alone.
double share_of_top(const std::vector<float>& logits, const std::vector<bool>& attended, int first,
                    int last, int count) {
  if (first >= last) return 1.0;
  std::vector<int> order(static_cast<std::size_t>(last - first));
  std::iota(order.begin(), order.end(), first);
  const int top = std::min(count, last - first);
  const auto better = [&](int a, int b) {
    const float x = logits[static_cast<std::size_t>(a)];
    const float y = logits[static_cast<std::size_t>(b)];
    return x > y || (x == y && a < b);
  };
  std::nth_element(order.begin(), order.begin() + top - 1, order.end(), better);
  const auto found = std::count_if(order.begin(), order.begin() + top, [&](int token) {
    return attended[static_cast<std::size_t>(token)];
  });
  return static_cast<double>(found) / top;
}

}  // namespace

LayerMeasure::LayerMeasure(const Trace& trace, const TraceLayer& layer, const CacheConfig& config,
                           Backend backend, Executor& executor)
    : trace_(trace),
      layer_(layer),
      config_(config),
      stream_{backend, nullptr, nullptr},
      executor_(executor),
      selection_heads_(config.select.grouping == HeadGrouping::kShared ? trace.num_kv_heads
                                                                       : trace.num_q_heads),
      key_(SharedAllocator<std::byte>(backend)),
      value_(SharedAllocator<std::byte>(backend)),
      wide_key_(SharedAllocator<float>(backend)),
      out_(SharedAllocator<float>(backend)),
      lse_(SharedAllocator<float>(backend)),
      ids_(SharedAllocator<std::int32_t>(backend)),
      counts_(SharedAllocator<std::int32_t>(backend)) {
  const auto row = static_cast<std::size_t>(trace.num_kv_heads * trace.head_dim);
  const auto tokens = static_cast<std::size_t>(trace.num_tokens);
  const auto heads = static_cast<std::size_t>(trace.num_q_heads);
  const std::size_t out = heads * static_cast<std::size_t>(trace.head_dim);
  key_.resize(tokens * row * size_of(config.model.kv_dtype));
  value_.resize(key_.size());
  wide_key_.resize(tokens * row);
  wide_query_.resize(out);
  out_.resize(out);
  full_.resize(out);
  lse_.resize(heads);
  full_lse_.resize(heads);
  ids_.resize(static_cast<std::size_t>(selection_heads_) * tokens);
  counts_.resize(static_cast<std::size_t>(selection_heads_));
  for (const int steps : kRetainSteps) {
    hit_rates_.emplace_back(static_cast<std::size_t>(selection_heads_), HitRate(steps));
  }
}

TensorView LayerMeasure::shared(const void* data, DType dtype,
                                std::initializer_list<std::int64_t> shape) const {
  TensorView view = contiguous_view(data, dtype, shape);
  view.device = shared_device(stream_.backend);
  return view;
}

void LayerMeasure::take_rows(const ClusterKVCache& cache, int position, SequenceId id, int first,
                             int last) {
  const DType dtype = config_.model.kv_dtype;
  const int row = trace_.num_kv_heads * trace_.head_dim;
  const auto view = [&](void* data, DType type) {
    auto* from = static_cast<std::byte*>(data) +
                 static_cast<std::size_t>(first) * static_cast<std::size_t>(row) * size_of(type);
    return shared(from, type, {last - first, trace_.num_kv_heads, trace_.head_dim});
  };
  cache.read_rows(position, id, first, last, view(key_.data(), dtype), view(value_.data(), dtype),
                  stream_);
  const SharedVector<float> unused(
      static_cast<std::size_t>(last - first) * static_cast<std::size_t>(row), 0.0F,
      SharedAllocator<float>(stream_.backend));
  cache.read_rows(
      position, id, first, last, view(wide_key_.data(), DType::kF32),
      shared(unused.data(), DType::kF32, {last - first, trace_.num_kv_heads, trace_.head_dim}),
      stream_);
  wait_for(cache);
  num_rows_ = last;
}

void LayerMeasure::step(ClusterKVCache& cache, int position, const DecodePlan& plan, int query) {
  attend(cache, position, plan, query);
  attend_in_full(query);
  compare_outputs();
  read_choice(cache, position, plan, query);
  compare_choice(query);
}

void LayerMeasure::attend(ClusterKVCache& cache, int position, const DecodePlan& plan, int query) {
  const std::int64_t before = cache.stats().total.bytes_touched();
  const AttendArgs args{slice(layer_.query, query, query + 1),
                        {shared(out_.data(), DType::kF32, {1, trace_.num_q_heads, trace_.head_dim}),
                         shared(lse_.data(), DType::kF32, {1, trace_.num_q_heads})}};
  step_us_.push_back(time_us([&] {
    cache.attend(position, plan, args, stream_);
    wait_for(cache);
  }));
  bytes_.push_back(static_cast<double>(cache.stats().total.bytes_touched() - before));
}

void LayerMeasure::attend_in_full(int query) {
  const DType dtype = config_.model.kv_dtype;
  const std::initializer_list<std::int64_t> shape = {1, num_rows_, trace_.num_kv_heads,
                                                     trace_.head_dim};
  const DecodeArgs args{slice(layer_.query, query, query + 1),
                        contiguous_view(key_.data(), dtype, shape),
                        contiguous_view(value_.data(), dtype, shape),
                        {},
                        trace_.softmax_scale,
                        trace_.logit_softcap};
  const AttentionOut out{
      contiguous_view(full_.data(), DType::kF32, {1, trace_.num_q_heads, trace_.head_dim}),
      contiguous_view(full_lse_.data(), DType::kF32, {1, trace_.num_q_heads})};
  Stream stream;
  stream.executor = &executor_;
  dense_us_.push_back(time_us([&] { dense_decode(args, out, stream); }));
}

void LayerMeasure::compare_outputs() {
  for (int head = 0; head < trace_.num_q_heads; ++head) {
    double difference = 0;
    double norm = 0;
    for (int d = 0; d < trace_.head_dim; ++d) {
      const auto at = static_cast<std::size_t>(head * trace_.head_dim + d);
      difference += std::pow(double{out_[at]} - full_[at], 2);
      norm += std::pow(double{full_[at]}, 2);
    }
    errors_.push_back(norm > 0 ? std::sqrt(difference / norm) : 0.0);
  }
}

void LayerMeasure::read_choice(ClusterKVCache& cache, int position, const DecodePlan& plan,
                               int query) {
  const Selection selection =
      cache.select(position, plan, slice(layer_.query, query, query + 1), stream_);
  cache.token_ids(position, plan, selection,
                  shared(ids_.data(), DType::kI32, {1, selection_heads_, trace_.num_tokens}),
                  shared(counts_.data(), DType::kI32, {1, selection_heads_}), stream_);
  wait_for(cache);
  const auto capacity = static_cast<std::size_t>(selection.cluster_ids.shape[2]);
  for (std::size_t head = 0; head < static_cast<std::size_t>(selection_heads_); ++head) {
    const auto* ids = static_cast<const std::int32_t*>(selection.cluster_ids.data);
    const auto* rows = static_cast<const std::int32_t*>(selection.row_counts.data);
    std::vector<HitRate::Cluster> chosen;
    for (std::size_t i = head * capacity; i < (head + 1) * capacity && ids[i] >= 0; ++i) {
      chosen.push_back({ids[i], rows[i]});
    }
    for (auto& rates : hit_rates_) rates[head].add(chosen);
  }
}

void LayerMeasure::compare_choice(int query) {
  const TensorView view = slice(layer_.query, query, query + 1);
  widen(view, wide_query_);
  const auto dim = static_cast<std::size_t>(trace_.head_dim);
  const int served = trace_.num_q_heads / selection_heads_;
  for (int head = 0; head < trace_.num_q_heads; ++head) {
    const int list = head / served;
    const int kv_head = head / (trace_.num_q_heads / trace_.num_kv_heads);
    std::vector<bool> attended(static_cast<std::size_t>(num_rows_));
    const auto* ids =
        ids_.data() + static_cast<std::size_t>(list) * static_cast<std::size_t>(trace_.num_tokens);
    const int count = counts_[static_cast<std::size_t>(list)];
    for (int i = 0; i < count; ++i) attended[static_cast<std::size_t>(ids[i])] = true;
    std::vector<float> logits(static_cast<std::size_t>(num_rows_));
    double mass = 0;
    for (std::size_t token = 0; token < logits.size(); ++token) {
      const auto row =
          token * static_cast<std::size_t>(trace_.num_kv_heads) + static_cast<std::size_t>(kv_head);
      logits[token] =
          trace_.softmax_scale * dot(wide_query_.data() + static_cast<std::size_t>(head) * dim,
                                     wide_key_.data() + row * dim, trace_.head_dim);
      if (trace_.logit_softcap > 0) {
        logits[token] = trace_.logit_softcap * std::tanh(logits[token] / trace_.logit_softcap);
      }
      if (attended[token]) {
        mass += std::exp(double{logits[token]} - full_lse_[static_cast<std::size_t>(head)]);
      }
    }
    masses_.push_back(mass);
    recalls_.push_back(share_of_top(logits, attended, config_.cluster.sink_tokens,
                                    trace_.query_start, config_.select.budget_tokens));
    if (head % served == 0) attended_.push_back(count);
  }
}

Metrics LayerMeasure::metrics(const std::string& preset, int budget) const {
  const auto rate = [&](std::size_t r) {
    std::vector<double> rates;
    for (const HitRate& head : hit_rates_[r]) rates.push_back(head.rate());
    return mean(rates);
  };
  return {.preset = preset,
          .layer = layer_.id,
          .budget = budget,
          .error_mean = mean(errors_),
          .error_p95 = percentile(errors_, 0.95),
          .mass_recall = mean(masses_),
          .token_recall = mean(recalls_),
          .hit_rate_r1 = rate(0),
          .hit_rate_r2 = rate(1),
          .hit_rate_r3 = rate(2),
          .attended_tokens = mean(attended_),
          .bytes_touched = mean(bytes_),
          .step_us = percentile(step_us_, 0.5),
          .dense_us = percentile(dense_us_, 0.5)};
}

std::vector<RetainPoint> LayerMeasure::retain() const {
  std::vector<RetainPoint> points;
  const double row_bytes =
      2.0 * trace_.head_dim * static_cast<double>(size_of(config_.model.kv_dtype));
  for (std::size_t r = 0; r < hit_rates_.size(); ++r) {
    std::vector<double> rates;
    double missed = 0;
    for (const HitRate& head : hit_rates_[r]) {
      rates.push_back(head.rate());
      missed += head.missed_rows();
    }
    points.push_back({kRetainSteps[r], mean(rates), missed * row_bytes});
  }
  return points;
}

}  // namespace clusterkv::tool
