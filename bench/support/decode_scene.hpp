// SPDX-License-Identifier: Apache-2.0
//
// A batch of sequences in the middle of decoding, as the device ops of select, recall and attend see it:
// 32 query / 8 KV heads, head_dim 128, bf16 rows, int8 index, segments of 2048 tokens in clusters of 8
// on average. Centroids are random, scaled so that about a fifth of the clusters pass tail_share.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bench/support/device.hpp"
#include "kernels/attend/cuda/attend_ops.hpp"
#include "kernels/recall/cuda/recall_ops.hpp"
#include "kernels/select/cuda/select_ops.hpp"

namespace clusterkv::bench {

struct SceneShape {
  int context = 32768;  ///< clustered tokens of each sequence, a multiple of 2048
  int batch = 1;
  int budget = 512;
  bool host_rows = false;  ///< rows in pinned host memory, behind slots
  int near_percent = 0;    ///< of them in device memory all the same, as kHybrid has them
  /// Layers of their own data, so that none is in a cache from the run before; 0: as many as needed.
  int layers = 0;

  bool operator==(const SceneShape&) const = default;
};

class DecodeScene {
 public:
  static constexpr int kQHeads = 32, kKvHeads = 8, kHeadDim = 128, kGroup = kQHeads / kKvHeads;
  static constexpr int kSegment = 2048, kClusters = kSegment / 8, kSinks = 16, kPending = 160;

  explicit DecodeScene(SceneShape shape);

  void score(int layer, void* stream,
             on_device::IntegerMath math = on_device::IntegerMath::kMma) const;
  void select(int layer, void* stream) const;
  void recall(int layer, void* stream) const { recall(layer, stream, kPlan, keep_all_); }
  /// Copies every quad again, if the plan's number is not that of the recall before.
  void recall_again(int layer, void* stream, std::uint32_t plan) const {
    recall(layer, stream, plan, keep_none_);
  }
  /// Takes so many of a hundred quads of the host store from their slots: the next recall copies those chosen.
  void drop(int layer, void* stream, int percent) const;
  void attend(int layer, void* stream, bool dense = false) const;

  [[nodiscard]] int layers() const { return shape_.layers; }
  [[nodiscard]] double index_bytes() const;  ///< that score reads, all layers
  [[nodiscard]] double row_bytes() const;    ///< of the chosen, sink and pending rows, all layers
  [[nodiscard]] double dense_bytes() const;
  [[nodiscard]] double recalled_bytes(int layer) const;  ///< of the last recall

 private:
  struct Layer {
    explicit Layer(const SceneShape& shape);
    Buffer<std::int8_t> centroids, value_means;
    Buffer<float> scale, spread, profile;
    Buffer<std::uint32_t> offset;
    Buffer<std::int32_t> used;
    Buffer<std::uint16_t> stored, near, live;
    Buffer<std::int32_t> ids, row_counts, num_clusters, num_rows;
    Buffer<std::uint32_t> row_ids;
    // Slots.
    Buffer<std::uint32_t> directory, owner, stamp, referenced, full_in;
    Buffer<std::int32_t> hand;
    Buffer<std::uint16_t> slots;
    Buffer<recall::QuadCopy> copies;
    Buffer<on_device::RecallCounts> counts;
  };

  static constexpr std::uint32_t kPlan = 1;
  void recall(int layer, void* stream, std::uint32_t plan,
              const Buffer<std::uint32_t>& retain_from) const;
  [[nodiscard]] static int num_blocks(const SceneShape& shape) {
    return shape.context / kSegment * (kClusters / kBlockClusters);
  }
  [[nodiscard]] IndexStore index(const Layer& layer) const;
  [[nodiscard]] RowStore rows(const Buffer<std::uint16_t>& memory) const;
  [[nodiscard]] RowStore stored_rows(const Layer& layer) const;
  [[nodiscard]] SelectionLists lists(const Layer& layer) const;
  [[nodiscard]] on_device::SlotPools pools(const Layer& layer) const;
  [[nodiscard]] on_device::PlanShape plan(void* stream) const;

  SceneShape shape_;
  std::vector<std::unique_ptr<Layer>> layers_;
  Buffer<std::uint32_t> row_pages_, live_pages_, blocks_;
  Buffer<SegmentView> segments_;
  Buffer<SequenceView> views_;
  Buffer<float> query_, e_;
  Buffer<BlockSums> sums_;
  Buffer<RowScores> scores_;
  Buffer<HeadTotals> totals_;
  Buffer<std::uint32_t> slice_keys_;
  Buffer<std::int32_t> slice_ids_, slice_counts_;
  Buffer<std::int64_t> first_slice_;
  Buffer<std::uint32_t> select_arrived_, attend_arrived_;
  Buffer<attend::PartialHead> partials_;
  Buffer<float> outputs_, out_, lse_;
  Buffer<std::uint32_t> keep_all_, keep_none_;
  Buffer<std::uint32_t> plan_numbers_;    ///< i at place i
  Buffer<on_device::QuadRange> dropped_;  ///< for i per cent at place i
};

/// Makes a scene once; keeps the last one only.
const DecodeScene& scene_of(const SceneShape& shape);

}  // namespace clusterkv::bench
