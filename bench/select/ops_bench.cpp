// SPDX-License-Identifier: Apache-2.0
//
// score_clusters and select_clusters by themselves, one thread, 8 KV heads of head_dim 128. Layers come in
// turn, so that an index is read from memory: `ns_cluster` is the time of a cluster and KV head,
// `of_read` the time that its bytes take at read bandwidth as a share of it.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "bench/support/limits.hpp"
#include "clusterkv/memory.hpp"
#include "kernels/select/select.hpp"

namespace clusterkv::bench {
namespace {

constexpr int kHeads = 8, kDim = 128, kSegmentBlocks = 4, kClusterRows = 8;
/// Several times what a cache holds.
constexpr std::int64_t kIndexBytes = std::int64_t{1} << 28;

template <class T>
class Array {
 public:
  explicit Array(std::int64_t count)
      : bytes_(static_cast<std::size_t>(count) * sizeof(T)),
        data_(static_cast<T*>(default_memory_resource().allocate(bytes_, 64, Device{}))) {}
  ~Array() { default_memory_resource().deallocate(data_, bytes_, 64, Device{}); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] T* begin() const { return data_; }
  [[nodiscard]] T* end() const { return data_ + bytes_ / sizeof(T); }

 private:
  std::size_t bytes_;
  T* data_;
};

/// One sequence in several layers. Rows of a block's clusters: 8 each.
class Scene {
 public:
  Scene(IndexDType dtype, int group, int num_blocks)
      : dtype_(dtype),
        group_(group),
        num_blocks_(num_blocks),
        layers_(static_cast<int>(std::max<std::int64_t>(
            1, kIndexBytes / (std::int64_t{kHeads} * num_blocks * kBlockClusters * kDim)))),
        centroids_(clusters() * kDim * static_cast<std::int64_t>(IndexStore::element_bytes(dtype))),
        scale_(clusters()),
        spread_(clusters()),
        offset_(planes() * (kBlockClusters + 1)),
        profile_(std::int64_t{kHeads} * kDim),
        e_(std::int64_t{kHeads} * group * num_blocks * kBlockClusters),
        sums_(std::int64_t{kHeads} * group * num_blocks),
        keys_(std::int64_t{num_blocks} * kBlockClusters),
        ids_(std::int64_t{num_blocks} * kBlockClusters),
        sizes_(std::int64_t{num_blocks} * kBlockClusters),
        lists_(std::int64_t{3} * kHeads * kBudget),
        totals_(std::size_t{kHeads} * static_cast<std::size_t>(group)) {
    fill();
  }

  [[nodiscard]] int layers() const { return layers_; }
  [[nodiscard]] SequenceView view(int layer) const {
    SequenceView v{};
    v.segments = segments_.data();
    v.num_segments = static_cast<std::int32_t>(segments_.size());
    v.blocks = blocks_.data() + static_cast<std::ptrdiff_t>(layer) * num_blocks_;
    v.num_blocks = num_blocks_;
    v.num_stored = std::int64_t{num_blocks_} * kBlockClusters * kClusterRows;
    v.budget_tokens = kBudget;
    return v;
  }
  [[nodiscard]] IndexStore index() const {
    IndexStore store;
    store.dtype = dtype_;
    store.head_dim = store.value_dim = kDim;
    store.num_blocks = std::int64_t{num_blocks_} * layers_;
    store.num_records = 1;
    store.centroids = centroids_.data();
    store.centroid_scale = scale_.data();
    store.spread = spread_.data();
    store.offset = offset_.data();
    store.profile = profile_.data();
    return store;
  }
  [[nodiscard]] RowScores scores() const { return {e_.data(), nullptr, sums_.data()}; }

  void score(int layer) {
    const SequenceView row = view(layer);
    const RowScores to = scores();
    const ScoreParams p{.rows = &row,
                        .index = index(),
                        .query = query_.data(),
                        .scores = &to,
                        .num_q_heads = kHeads * group_,
                        .num_kv_heads = kHeads,
                        .softmax_scale = 1 / std::sqrt(float{kDim}),
                        .use_spread = true};
    for (int head = 0; head < kHeads; ++head) {
      select::cpu().score_clusters(p, {0, head, 0, num_blocks_});
    }
  }
  void choose(int layer) {
    const SequenceView row = view(layer);
    const RowScores from = scores();
    std::int32_t* counts = lists_.data() + kHeads * kBudget;
    std::int32_t* lengths = counts + kHeads * kBudget;
    const select::SelectParams p{
        .rows = &row,
        .index = index(),
        .scores = &from,
        .lists = {kHeads, kBudget, lists_.data(), counts, lengths, lengths + kHeads, nullptr},
        .totals = totals_.data(),
        .num_q_heads = kHeads * group_,
        .num_kv_heads = kHeads,
        .grouping = HeadGrouping::kShared};
    for (int head = 0; head < kHeads; ++head) {
      select::cpu().select_clusters(p, 0, head, {keys_.data(), ids_.data(), sizes_.data()});
    }
  }

 private:
  using ScoreParams = select::ScoreParams;
  static constexpr int kBudget = 512;

  [[nodiscard]] std::int64_t planes() const { return std::int64_t{kHeads} * num_blocks_ * layers_; }
  [[nodiscard]] std::int64_t clusters() const { return planes() * kBlockClusters; }

  void fill() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform(0.0F, 0.3F);
    std::vector<std::byte> some(std::size_t{1} << 20);
    for (std::size_t i = 0; i < some.size(); ++i) {
      const auto byte = static_cast<std::byte>(static_cast<int>(random() % 255) - 127);
      // The high byte of a bf16 number: 0.5 to 2, of either sign.
      const bool high = dtype_ == IndexDType::kBF16 && i % 2 == 1;
      some[i] = high ? (byte & std::byte{0x80}) | std::byte{0x3f} : byte;
    }
    for (std::byte* to = centroids_.begin(); to < centroids_.end(); to += some.size()) {
      std::copy_n(some.begin(), std::min(centroids_.end() - to, std::ssize(some)), to);
    }
    std::fill(scale_.begin(), scale_.end(), 2.0F / 73.0F);
    std::generate(spread_.begin(), spread_.end(), [&] { return uniform(random); });
    std::fill(profile_.begin(), profile_.end(), 1.0F);
    for (std::int64_t plane = 0; plane < planes(); ++plane) {
      for (std::int64_t c = 0; c <= kBlockClusters; ++c) {
        offset_.data()[plane * (kBlockClusters + 1) + c] =
            static_cast<std::uint32_t>((plane % num_blocks_ * kBlockClusters + c) * kClusterRows);
      }
    }
    for (int i = 0; i < num_blocks_ * layers_; ++i) {
      blocks_.push_back(static_cast<std::uint32_t>(i));
    }
    for (int b = 0; b < num_blocks_; b += kSegmentBlocks) {
      segments_.push_back({0, b, std::min(kSegmentBlocks, num_blocks_ - b), 0, 0});
    }
    query_.resize(static_cast<std::size_t>(kHeads * group_ * kDim));
    std::generate(query_.begin(), query_.end(), [&] { return normal(random); });
  }

  IndexDType dtype_;
  int group_, num_blocks_, layers_;
  Array<std::byte> centroids_;
  Array<float> scale_, spread_;
  Array<std::uint32_t> offset_;
  Array<float> profile_;
  Array<float> e_;
  Array<BlockSums> sums_;
  Array<std::uint32_t> keys_;
  Array<std::int32_t> ids_, sizes_, lists_;
  std::vector<HeadTotals> totals_;
  std::vector<std::uint32_t> blocks_;
  std::vector<SegmentView> segments_;
  std::vector<float> query_;
};

void report(benchmark::State& state, int num_blocks, double bytes) {
  const double clusters = double{kHeads} * num_blocks * kBlockClusters;
  state.counters["ns_cluster"] = benchmark::Counter(
      clusters * 1e-9, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.counters["of_read"] = benchmark::Counter(clusters * bytes / read_bandwidth(1),
                                                 benchmark::Counter::kIsIterationInvariantRate);
}

/// Arguments: blocks of a KV head, group.
template <IndexDType kIndex>
void score_clusters(benchmark::State& state) {
  const auto blocks = static_cast<int>(state.range(0));
  Scene scene(kIndex, static_cast<int>(state.range(1)), blocks);
  int turn = 0;
  for (auto _ : state) scene.score(turn++ % scene.layers());
  report(state, blocks, kDim * static_cast<double>(IndexStore::element_bytes(kIndex)) + 12);
}

void select_clusters(benchmark::State& state) {
  const auto blocks = static_cast<int>(state.range(0));
  Scene scene(IndexDType::kInt8, static_cast<int>(state.range(1)), blocks);
  scene.score(0);
  for (auto _ : state) scene.choose(0);
  report(state, blocks, 4.0 * static_cast<double>(state.range(1)));
}

void medians(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"blocks", "group"})
      ->Repetitions(kRepeats)
      ->ReportAggregatesOnly()
      ->Unit(benchmark::kMicrosecond);
}

BENCHMARK(score_clusters<IndexDType::kInt8>)
    ->Name("select/score_clusters/cpu/int8")
    ->Apply(medians)
    ->ArgsProduct({{64}, {1, 4, 8}});
BENCHMARK(score_clusters<IndexDType::kBF16>)
    ->Name("select/score_clusters/cpu/bf16")
    ->Apply(medians)
    ->ArgsProduct({{64}, {1, 4, 8}});
BENCHMARK(select_clusters)
    ->Name("select/select_clusters/cpu/by_context")
    ->Apply(medians)
    ->ArgsProduct({{64, 256, 2048}, {4}});

}  // namespace
}  // namespace clusterkv::bench
