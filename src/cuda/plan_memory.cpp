// SPDX-License-Identifier: Apache-2.0
#include "src/cuda/plan_memory.hpp"

#include "clusterkv/error.hpp"
#include "src/runtime/capacity.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

SelectionLists carve_lists(Carver& carver, Size rows, int heads, int capacity) {
  const Size lists = rows * heads;
  SelectionLists result;
  result.selection_heads = heads;
  result.capacity = capacity;
  result.cluster_ids = carver.take<std::int32_t>(lists * capacity);
  result.row_counts = carver.take<std::int32_t>(lists * capacity);
  result.num_clusters = carver.take<std::int32_t>(lists);
  result.num_rows = carver.take<std::int32_t>(lists);
  result.row_ids = carver.take<std::uint32_t>(lists * capacity);
  return result;
}

}  // namespace

CudaPlan::~CudaPlan() {
  try {
    for (const Event& event : copied) event.wait();
    sealed.wait();
  } catch (const CudaError&) {
    // The device is lost, and with it what would be read.
  }
}

Scratch carve_scratch(Carver& carver, const CacheConfig& config, const PlanLimits& limits) {
  const ModelShape& m = config.model;
  const runtime::Capacity capacity = runtime::capacity_of(config);
  const Size rows = limits.max_rows;
  const Size q_heads = m.num_q_heads;
  const int heads = capacity.selection_heads;
  const int list = runtime::list_capacity(config, limits);
  const Size clusters = Size(capacity.blocks) * kBlockClusters;
  const bool per_query_head = config.select.grouping == HeadGrouping::kPerQueryHead;
  // A row's last slice may be cut short.
  const Size slices = (rows + num_slices(static_cast<int>(capacity.blocks))) * heads;
  const Size pieces = rows * q_heads * attend::kMaxPieces;

  Scratch s{};
  s.query = carver.take<float>(rows * q_heads * m.head_dim);
  s.lists = carve_lists(carver, rows, heads, list);
  s.unwanted = carve_lists(carver, rows, heads, list);
  s.totals = carver.take<HeadTotals>(rows * q_heads);
  s.e = carver.take<float>(clusters * q_heads);
  s.z = per_query_head ? carver.take<float>(clusters * q_heads) : nullptr;
  s.block_sums = carver.take<BlockSums>(Size(capacity.blocks) * q_heads);
  s.select.keys = carver.take<std::uint32_t>(slices * kSliceClusters);
  s.select.ids = carver.take<std::int32_t>(slices * kSliceClusters);
  s.select.counts = carver.take<std::int32_t>(slices);
  s.select.arrived = carver.take<std::uint32_t>(rows * heads);
  s.partials.heads = carver.take<attend::PartialHead>(pieces);
  s.partials.outputs = carver.take<float>(pieces * m.head_dim);
  s.partials.num_q_heads = m.num_q_heads;
  s.partials.head_dim = m.head_dim;
  s.tail_mass = carver.take<float>(rows * q_heads);
  s.kept = carver.take<std::int64_t>(rows * heads);
  s.attend_arrived = carver.take<std::uint32_t>(rows * heads);
  s.copies = carver.take<recall::QuadCopy>(rows * heads * list);
  s.recall_counts = carver.take<RecallCounts>(m.num_kv_heads);
  s.tables = carver.take<std::byte>(tables_bytes(config, limits));
  return s;
}

FixedTables carve_tables(Carver& carver, const PlanLimits& limits) {
  const Size rows = limits.max_rows;
  FixedTables t{};
  t.views = carver.take<SequenceView>(rows);
  t.adopted_views = carver.take<SequenceView>(rows);
  t.scores = carver.take<RowScores>(rows);
  t.first_slice = carver.take<std::int64_t>(rows);
  t.retain_from = carver.take<std::uint32_t>(rows);
  t.plan_number = carver.take<std::uint32_t>(1);
  t.append_jobs = carver.take<AppendJob>(rows * 2);
  return t;
}

Size tables_bytes(const CacheConfig& config, const PlanLimits& limits) {
  const runtime::Capacity capacity = runtime::capacity_of(config);
  Carver fixed(nullptr);
  carve_tables(fixed, limits);
  const Size pages = Size(capacity.row_pages) + capacity.live_pages + capacity.blocks;
  const Size stale = Size(capacity.row_pages) + capacity.records;
  constexpr std::size_t kArrays = 4;  // of a sequence, each aligned
  const Size gaps = (Size(limits.max_rows) * kArrays + kArrays) * alignof(std::max_align_t);
  return Size(fixed.used()) + pages * sizeof(std::uint32_t) +
         Size(capacity.records) * (sizeof(SegmentView) + sizeof(SealView)) +
         stale * sizeof(QuadRange) + gaps;
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
