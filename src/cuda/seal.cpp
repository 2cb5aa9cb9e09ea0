// SPDX-License-Identifier: Apache-2.0
#include "src/cuda/seal.hpp"

#include <algorithm>

#include "kernels/cluster/rules.hpp"
#include "src/runtime/capacity.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

/// Jobs of one launch, at most, and how many whole segments their scratch has room for: a wave of
/// blocks on a large device.
constexpr int kMaxJobs = 4096;
constexpr int kSegmentJobs = 128;

bool is_large(const SealSize& size) {
  return size.num_tokens > kMaxSegmentTokens || size.num_clusters > kMaxSegmentClusters;
}

/// How the area of a job of this size is cut.
SealScratch scratch_for(const SealSize& size, const ModelShape& model) {
  Carver carver(nullptr);
  const auto take = [&](Size count, std::size_t element) {
    const std::size_t at = carver.used();
    carver.take<std::byte>(count * element);
    return at;
  };
  const Size clusters = size.num_clusters;
  SealScratch area{};
  take(size.num_tokens, sizeof(std::int32_t));
  area.order = take(size.num_tokens, sizeof(std::int32_t));
  area.offset = take(clusters + 1, sizeof(std::int32_t));
  area.used = take(clusters, sizeof(std::int32_t));
  area.variance = take(clusters * model.head_dim, sizeof(float));
  area.value_sum = take(clusters * model.value_dim, sizeof(float));
  if (is_large(size)) {
    const Size padded = large_clusters(size.num_clusters);
    area.centroids = take(padded * model.head_dim, sizeof(std::uint16_t));
    area.bias = take(padded, sizeof(float));
    area.cursor = take(clusters, sizeof(std::int32_t));
  }
  area.area_bytes = carver.used();
  return area;
}

/// Scratch for whole segments of this size, a wave of blocks or as many as there can be at once.
Size wave_bytes(const CacheConfig& config, int num_tokens, int min_clusters) {
  if (num_tokens == 0) return 0;
  const auto tokens = static_cast<int>(std::min<std::int64_t>(num_tokens, config.max_tokens));
  const SealSize size{
      tokens, cluster::num_clusters(tokens, config.cluster.tokens_per_cluster, min_clusters)};
  const std::int64_t most = (config.max_tokens + tokens - 1) / tokens * config.model.num_layers *
                            config.model.num_kv_heads;
  return Size(std::min<std::int64_t>(kSegmentJobs, most)) *
         scratch_for(size, config.model).area_bytes;
}

}  // namespace

Size Sealer::scratch_bytes(const CacheConfig& config) {
  const ClusterConfig& c = config.cluster;
  return std::max(wave_bytes(config, c.window_tokens, c.min_window_clusters).get(),
                  wave_bytes(config, c.segment_tokens, 1).get());
}

Size Sealer::initial_bytes(const CacheConfig& config) {
  constexpr std::size_t kJobBytes =
      sizeof(LargeClusterJob) + sizeof(IndexJob) + sizeof(std::uint32_t);
  return scratch_bytes(config) + kMaxJobs * kJobBytes + config.model.layers.size() * sizeof(int);
}

Sealer::Sealer(const CacheConfig& config, MemoryResource& memory)
    : model_(config.model),
      config_(config.cluster),
      memory_(&memory),
      scratch_(memory, scratch_bytes(config).get(), "clustering scratch", {Device::kCuda}),
      cluster_jobs_(memory, kMaxJobs * sizeof(LargeClusterJob), "clustering jobs", {Device::kCuda}),
      index_jobs_(memory, kMaxJobs * sizeof(IndexJob), "index jobs", {Device::kCuda}),
      previous_(memory, kMaxJobs * sizeof(std::uint32_t), "index jobs", {Device::kCuda}),
      model_layers_(memory, model_.layers.size() * sizeof(int), "layer ids", {Device::kCuda}) {
  const auto first = static_cast<std::size_t>(runtime::count_dense_layers(config));
  if (first == model_.layers.size()) return;
  const SideStream stream;
  copy_async(model_layers_.data(), model_.layers.data() + first,
             (model_.layers.size() - first) * sizeof(int), stream.get());
  wait_for(stream.get());
}

bool Sealer::has_room(int num_tokens, int num_clusters) const {
  return scratch_for({num_tokens, num_clusters}, model_).area_bytes <= scratch_.bytes();
}

void Sealer::reserve(int num_tokens, int num_clusters) {
  const std::size_t needed = scratch_for({num_tokens, num_clusters}, model_).area_bytes;
  scratch_ = runtime::Buffer(*memory_, needed, "clustering scratch", {Device::kCuda});
}

void Sealer::seal(const SealTarget& target, const SealView* seals, std::span<const SealSize> sizes,
                  std::int64_t* clusters, void* stream) {
  for (std::size_t first = 0; first < sizes.size();) {
    SealSize most = sizes[first];
    std::size_t last = first;
    // As many as have room for all planes and are clustered by the same kernel.
    for (; last < sizes.size() && is_large(sizes[last]) == is_large(most); ++last) {
      const SealSize both{std::max(most.num_tokens, sizes[last].num_tokens),
                          std::max(most.num_clusters, sizes[last].num_clusters)};
      const std::size_t jobs = (last - first + 1) * static_cast<std::size_t>(target.num_planes);
      const std::size_t area = scratch_for(both, model_).area_bytes;
      if (last > first && (jobs > kMaxJobs || jobs * area > scratch_.bytes())) break;
      most = both;
    }
    seal_group(target, seals + first, static_cast<int>(last - first), most, clusters, stream);
    first = last;
  }
}

void Sealer::seal_group(const SealTarget& target, const SealView* seals, int num_seals,
                        const SealSize& most, std::int64_t* clusters, void* stream) {
  SealScratch scratch = scratch_for(most, model_);
  scratch.base = scratch_.data();
  const auto room =
      static_cast<int>(std::clamp<std::size_t>(scratch_.bytes() / scratch.area_bytes, 1, kMaxJobs));
  const int step = num_seals > 1 ? target.num_planes : std::min(target.num_planes, room);
  auto* jobs = reinterpret_cast<IndexJob*>(index_jobs_.data());
  auto* previous = reinterpret_cast<std::uint32_t*>(previous_.data());
  const cluster::SegmentParams like{.keys = {target.live, nullptr, 0, most.num_tokens, 0},
                                    .num_clusters = most.num_clusters,
                                    .metric = config_.metric,
                                    .iterations = config_.kmeans_iterations,
                                    .random_start = config_.seed != 0,
                                    .start_seed = 0};
  for (int done = 0; done < target.num_planes; done += step) {
    const int planes = std::min(step, target.num_planes - done);
    const int first_plane = target.first_plane + done;
    const int num_jobs = num_seals * planes;
    const IndexShape shape{num_jobs, most.num_tokens, most.num_clusters, stream};
    fill_index_jobs({.seals = seals,
                     .scratch = scratch,
                     .first_plane = first_plane,
                     .num_planes = planes,
                     .in_token_order = target.dense},
                    num_seals, jobs, previous, stream);
    if (!target.dense) {
      const ClusterJobs runs{.seals = seals,
                             .live = target.live,
                             .model_layers = reinterpret_cast<const int*>(model_layers_.data()),
                             .like = like,
                             .seed = config_.seed,
                             .scratch = scratch,
                             .num_kv_heads = model_.num_kv_heads,
                             .first_plane = first_plane,
                             .num_planes = planes};
      if (is_large(most)) {
        auto* large = reinterpret_cast<LargeClusterJob*>(cluster_jobs_.data());
        fill_cluster_jobs(runs, num_seals, large, stream);
        cluster_large_segments(large, num_jobs, like, stream);
      } else {
        auto* small = reinterpret_cast<ClusterJob*>(cluster_jobs_.data());
        fill_cluster_jobs(runs, num_seals, small, stream);
        cluster_segments(small, num_jobs, like, stream);
      }
      build_index(target.live, target.index, jobs, shape);
      add_value_sums(target.index, jobs, previous, planes, shape);
      count_clusters(target.index, jobs, num_jobs, clusters, stream);
    }
    store_segments({target.live, target.stored, target.positions, target.positions_stride, nullptr},
                   jobs, shape);
  }
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
