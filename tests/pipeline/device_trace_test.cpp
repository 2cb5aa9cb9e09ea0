// SPDX-License-Identifier: Apache-2.0
//
// The whole pipeline out of device ops on the recorded trace: append, cluster, index, score, select,
// attend. Its error must be that of the CPU backend.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "kernels/attend/cuda/attend_ops.hpp"
#include "kernels/cluster/cuda/cluster_ops.hpp"
#include "kernels/cluster/rules.hpp"
#include "kernels/index/cuda/index_ops.hpp"
#include "kernels/recall/cuda/recall_ops.hpp"
#include "kernels/select/cuda/select_ops.hpp"
#include "tests/support/data.hpp"
#include "tests/support/device.hpp"
#include "tests/support/trace.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kQueries = 256;
constexpr int kBudget = 256;
constexpr int kFirstPending = kPageRows;  ///< live row of the first token that is no sink

std::vector<std::uint32_t> counting(std::size_t count) {
  std::vector<std::uint32_t> numbers(count);
  for (std::size_t i = 0; i < count; ++i) numbers[i] = static_cast<std::uint32_t>(i);
  return numbers;
}

/// One layer of one sequence with the standard preset, on the device.
class DeviceLayer {
 public:
  explicit DeviceLayer(const RecordedLayer& trace)
      : trace_(trace),
        config_(CacheConfig::standard(trace.model(DType::kF16))),
        heads_(trace.num_kv_heads),
        live_(rows(trace.num_tokens + 2 * kPageRows)),
        stored_(rows(trace.num_tokens)),
        pages_(counting(static_cast<std::size_t>(trace.num_tokens / kPageRows + 2))),
        index_(IndexDType::kInt8, trace.head_dim, heads_, kBlocks, kRecords),
        blocks_(counting(kBlocks)),
        positions_(static_cast<std::size_t>(heads_ * trace.num_tokens)) {
    append();
    cluster();
  }

  /// Output of query number `query`, [q_head, head_dim].
  std::vector<float> attend(int query);

 private:
  static constexpr int kBlocks = 10;
  static constexpr int kRecords = 2;

  Guarded<std::uint16_t> rows(int count) const {
    return Guarded<std::uint16_t>(static_cast<std::size_t>(heads_ * count * 2 * trace_.head_dim));
  }
  RowStore store(Guarded<std::uint16_t>& memory) const {
    RowStore s;
    s.base = reinterpret_cast<std::byte*>(memory.data());
    s.row_bytes = static_cast<std::size_t>(4 * trace_.head_dim);
    s.head_stride = memory.size() / static_cast<std::size_t>(heads_) * 2;
    s.dtype = DType::kF16;
    s.head_dim = s.value_dim = trace_.head_dim;
    return s;
  }

  void append() {
    const auto view = [&](const std::vector<std::uint16_t>& data) {
      return contiguous_view(data.data(), DType::kF16,
                             {trace_.num_tokens, heads_, trace_.head_dim});
    };
    const int sinks = config_.cluster.sink_tokens;
    const on_device::AppendJob jobs[2] = {
        {0, 0, pages_.data(), sinks},
        {sinks, kFirstPending, pages_.data(), trace_.num_tokens - sinks}};
    on_device::append_rows({view(trace_.key), view(trace_.value), 0, 0, nullptr, 0, store(live_)},
                           jobs, 2, trace_.num_tokens, nullptr);
  }

  void cluster();

  const RecordedLayer& trace_;
  CacheConfig config_;
  int heads_;
  Guarded<std::uint16_t> live_, stored_;
  std::vector<std::uint32_t> pages_;
  TestIndex index_;
  std::vector<std::uint32_t> blocks_;
  Guarded<std::uint32_t> positions_;
  std::vector<SegmentView> segments_;
};

/// Seals the prompt: segments of 2048 tokens and the rest.
void DeviceLayer::cluster() {
  const ClusterConfig& c = config_.cluster;
  const int clustered = trace_.query_start - c.sink_tokens;
  std::vector<on_device::ClusterJob> cluster_jobs;
  std::vector<on_device::IndexJob> index_jobs;
  std::vector<std::uint32_t> previous;
  std::vector<std::vector<std::int32_t>> ints;
  std::vector<std::vector<float>> floats;
  const auto room = static_cast<std::size_t>(c.segment_tokens + 1);
  ints.reserve(64);
  const auto take_ints = [&] { return ints.emplace_back(room).data(); };
  floats.reserve(64);
  const auto take_floats = [&] {
    return floats.emplace_back(static_cast<std::size_t>(256 * trace_.head_dim)).data();
  };
  int first_block = 0;
  for (int first = 0; first < clustered; first += c.segment_tokens) {
    const int tokens = std::min(c.segment_tokens, clustered - first);
    const int clusters = cluster::num_clusters(tokens, c.tokens_per_cluster, 1);
    const auto record = static_cast<std::uint32_t>(segments_.size());
    segments_.push_back(
        {record, first_block, (clusters + kBlockClusters - 1) / kBlockClusters, tokens, first});
    for (int head = 0; head < heads_; ++head) {
      const std::int64_t live_row = kFirstPending + first;
      cluster_jobs.push_back({{{store(live_), pages_.data(), live_row, tokens, head},
                               clusters,
                               c.metric,
                               c.kmeans_iterations,
                               false,
                               0},
                              take_ints(),
                              take_ints(),
                              take_ints()});
      const on_device::ClusterJob& job = cluster_jobs.back();
      index_jobs.push_back({{pages_.data(), live_row, c.sink_tokens + first, tokens, head},
                            {segments_.back(), blocks_.data() + first_block, pages_.data()},
                            clusters,
                            job.order,
                            job.offset,
                            take_ints(),
                            take_floats(),
                            take_floats()});
      previous.push_back(record == 0 ? 0 : record - 1);
    }
    first_block += segments_.back().num_blocks;
  }
  const auto num_jobs = static_cast<int>(cluster_jobs.size());
  on_device::cluster_segments(cluster_jobs.data(), num_jobs, cluster_jobs[0].params, nullptr);
  const on_device::IndexShape shape{num_jobs, c.segment_tokens, 256, nullptr};
  on_device::build_index(store(live_), index_.view(), index_jobs.data(), shape);
  on_device::add_value_sums(index_.view(), index_jobs.data(), previous.data(), heads_, shape);
  on_device::store_segments(
      {store(live_), store(stored_), positions_.data(), trace_.num_tokens, nullptr},
      index_jobs.data(), shape);
}

std::vector<float> DeviceLayer::attend(int query) {
  const int q_heads = trace_.num_q_heads;
  const auto width = static_cast<std::size_t>(q_heads * trace_.head_dim);
  std::vector<float> wide;
  for (std::size_t i = 0; i < width; ++i) {
    wide.push_back(f16_value(trace_.query[static_cast<std::size_t>(query) * width + i]));
  }
  SequenceView row{};
  row.row_pages = row.live_pages = pages_.data();
  row.segments = segments_.data();
  row.num_segments = static_cast<std::int32_t>(segments_.size());
  row.blocks = blocks_.data();
  row.num_blocks = segments_.back().first_block + segments_.back().num_blocks;
  row.num_sinks = config_.cluster.sink_tokens;
  row.num_stored = trace_.query_start - row.num_sinks;
  row.first_pending = kFirstPending + row.num_stored;
  row.num_pending = query + 1;
  row.budget_tokens = kBudget;
  const auto clusters = static_cast<std::size_t>(row.num_blocks * kBlockClusters * q_heads);
  Guarded<float> e(clusters);
  Guarded<BlockSums> sums(static_cast<std::size_t>(row.num_blocks * q_heads));
  const RowScores scores{e.data(), nullptr, sums.data()};
  const on_device::PlanShape shape{1, row.num_blocks, nullptr};
  on_device::score_clusters(
      {&row, index_.view(), wide.data(), &scores, q_heads, heads_, trace_.softmax_scale, true},
      shape);

  const auto entries = static_cast<std::size_t>(heads_ * kBudget);
  const auto lists = static_cast<std::size_t>(heads_);
  Guarded<std::int32_t> ids(entries), counts(entries), num_clusters(lists), num_rows(lists);
  Guarded<std::uint32_t> row_ids(entries);
  Guarded<HeadTotals> totals(static_cast<std::size_t>(q_heads));
  Guarded<std::uint32_t> arrived(std::vector<std::uint32_t>(lists, 0));
  const SelectionLists chosen{
      heads_,          kBudget,       ids.data(), counts.data(), num_clusters.data(),
      num_rows.data(), row_ids.data()};
  Guarded<std::uint32_t> keys(lists * on_device::kSliceClusters);
  Guarded<std::int64_t> first_slice(std::vector<std::int64_t>{0});
  Guarded<std::int32_t> key_ids(keys.size()), slices(lists);
  on_device::select_clusters(
      {&row, index_.view(), &scores, chosen, totals.data(), q_heads, heads_, HeadGrouping::kShared},
      {first_slice.data(), keys.data(), key_ids.data(), slices.data(), arrived.data()}, shape);

  const auto pieces = static_cast<std::size_t>(q_heads * attend::kMaxPieces);
  Guarded<attend::PartialHead> partials(pieces);
  Guarded<float> outputs(pieces * static_cast<std::size_t>(trace_.head_dim));
  Guarded<float> out(width);
  attend::AttendParams p{};
  p.rows = &row;
  p.query = wide.data();
  p.stored = store(stored_);
  p.live = store(live_);
  p.lists = chosen;
  p.partials = {partials.data(), outputs.data(), q_heads, trace_.head_dim};
  p.num_q_heads = q_heads;
  p.num_kv_heads = heads_;
  p.softmax_scale = trace_.softmax_scale;
  p.tail = Tail::kSecondMoment;
  p.tail_share = config_.select.tail_share;
  p.index = index_.view();
  p.scores = &scores;
  p.totals = totals.data();
  on_device::attend({p,
                     true,
                     true,
                     contiguous_view(out.data(), DType::kF32, {1, q_heads, trace_.head_dim}),
                     {},
                     nullptr,
                     nullptr},
                    arrived.data(), shape);
  return out.copy();
}

class DeviceTrace : public DeviceTest {};

TEST_F(DeviceTrace, ErrsAsTheCpuBackend) {
  const RecordedLayer trace = load_recorded_layer(small_trace(), 9);
  const std::vector<double> full = full_attention(trace, kQueries);
  const CacheConfig config = CacheConfig::standard(trace.model(DType::kF16));
  const double cpu = replay_recorded(trace, config, {kBudget}, full, kQueries)[0].error_mean;
  DeviceLayer layer(trace);
  double sum = 0;
  std::size_t at = 0;
  for (int query = 0; query < kQueries; ++query) {
    const std::vector<float> out = layer.attend(query);
    for (std::size_t i = 0; i < out.size();) {
      double difference = 0;
      double norm = 0;
      for (int d = 0; d < trace.head_dim; ++d, ++i, ++at) {
        difference += std::pow(double{out[i]} - full[at], 2);
        norm += full[at] * full[at];
      }
      sum += std::sqrt(difference / norm);
    }
  }
  const double device = sum / (kQueries * trace.num_q_heads);
  std::printf("budget %d: error %.5f on the device, %.5f on the CPU\n", kBudget, device, cpu);
  EXPECT_NEAR(device, cpu, 0.02 * cpu);
}

}  // namespace
}  // namespace clusterkv::testing
