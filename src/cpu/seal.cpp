// SPDX-License-Identifier: Apache-2.0
#include "src/cpu/seal.hpp"

#include <algorithm>

#include "kernels/cluster/cluster.hpp"
#include "kernels/cluster/rules.hpp"
#include "kernels/index/index.hpp"
#include "src/runtime/parallel.hpp"

namespace clusterkv::cpu {
namespace {

/// Segments clustered at once, at most: bounds the scratch, whatever the number of threads.
constexpr int kSealTasks = 16;

std::size_t cluster_bytes(int num_tokens, int num_clusters, int head_dim) {
  return cluster::segment_scratch_bytes(num_tokens, num_clusters, head_dim);
}

std::size_t area_bytes(int num_tokens, int num_clusters, int head_dim) {
  const std::size_t variance =
      static_cast<std::size_t>(num_clusters) * static_cast<std::size_t>(head_dim) * sizeof(float);
  return cluster_bytes(num_tokens, num_clusters, head_dim) + variance;
}

/// Scratch of the segments whose size is known beforehand.
std::size_t initial_area(const CacheConfig& config) {
  const ClusterConfig& c = config.cluster;
  const auto area = [&config](int tokens, int min_clusters) {
    // No more than there are tokens to seal.
    const int most = static_cast<int>(std::min<std::int64_t>(tokens, config.max_tokens));
    return area_bytes(most,
                      cluster::num_clusters(most, config.cluster.tokens_per_cluster, min_clusters),
                      config.model.head_dim);
  };
  return std::max(area(c.window_tokens, c.min_window_clusters), area(c.segment_tokens, 1));
}

}  // namespace

std::size_t Sealer::initial_bytes(const CacheConfig& config) {
  return kSealTasks * initial_area(config);
}

Sealer::Sealer(const CacheConfig& config, MemoryResource& memory)
    : model_(config.model),
      config_(config.cluster),
      memory_(&memory),
      area_bytes_(initial_area(config)),
      scratch_(memory, kSealTasks * area_bytes_, "clustering scratch") {}

void Sealer::reserve(int num_tokens, int num_clusters) {
  const std::size_t needed = area_bytes(num_tokens, num_clusters, model_.head_dim);
  if (needed <= area_bytes_) return;
  scratch_ = runtime::Buffer(*memory_, kSealTasks * needed, "clustering scratch");
  area_bytes_ = needed;
}

void Sealer::seal(const SealLayer& layer, const Sequence& sequence, Executor& executor) {
  const int heads = model_.num_kv_heads;
  const int jobs = static_cast<int>(sequence.sealing().size()) * heads;
  const int tasks = std::min(jobs, kSealTasks);
  runtime::parallel_for(executor, tasks, [&](int task) {
    std::byte* scratch = scratch_.data() + static_cast<std::size_t>(task) * area_bytes_;
    for (int job = task; job < jobs; job += tasks) seal_segment(layer, sequence, job, scratch);
  });
  if (layer.dense) return;
  for (const Sequence::Sealing& sealing : sequence.sealing()) {
    if (sealing.segment == 0) continue;
    const std::uint32_t record = sequence.segment(sealing.segment).record;
    const std::uint32_t previous = sequence.segment(sealing.segment - 1).record;
    for (int head = 0; head < heads; ++head) {
      index::cpu().add_value_sum(layer.index, head, record, previous);
    }
  }
}

void Sealer::seal_segment(const SealLayer& layer, const Sequence& sequence, int job,
                          std::byte* scratch) const {
  const int kv_head = job % model_.num_kv_heads;
  const Sequence::Sealing& sealing =
      sequence.sealing()[static_cast<std::size_t>(job / model_.num_kv_heads)];
  const SegmentView& segment = sequence.segment(sealing.segment);
  const index::SegmentSource source{sequence.live_pages(), sealing.first_live_row,
                                    sealing.first_token, segment.num_rows, kv_head};
  const index::SegmentTarget target{segment, sequence.blocks_of(segment),
                                    sequence.row_pages().data()};
  index::StoreParams store{layer.live, layer.stored, layer.positions, layer.positions_stride,
                           nullptr};
  if (!layer.dense) {
    const auto s = cluster::carve_segment_scratch(scratch, segment.num_rows, sealing.num_clusters,
                                                  model_.head_dim);
    cluster::cpu().cluster_segment(
        {.keys = {layer.live, source.live_pages, source.first_live_row, segment.num_rows, kv_head},
         .num_clusters = sealing.num_clusters,
         .metric = config_.metric,
         .iterations = config_.kmeans_iterations,
         .random_start = config_.seed != 0,
         .start_seed =
             cluster::start_seed(config_.seed, layer.model_layer, kv_head, sealing.first_token)},
        s);
    auto* variance = reinterpret_cast<float*>(
        scratch + cluster_bytes(segment.num_rows, sealing.num_clusters, model_.head_dim));
    index::cpu().build_index(
        {layer.live, layer.index, sealing.num_clusters, s.order, s.offset, variance}, source,
        target);
    store.order = s.order;
  }
  index::cpu().store_segment(store, source, target);
}

}  // namespace clusterkv::cpu
