// SPDX-License-Identifier: Apache-2.0
#include "src/cuda/plan_memory.hpp"

#include "clusterkv/error.hpp"
#include "src/runtime/capacity.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
CudaPlan::~CudaPlan() {
  try {
    for (const Event& event : copied) event.wait();
    sealed.wait();
    prefetched.wait();
  } catch (const CudaError&) {
    // The device is lost, and with it what would be read.
  }
}

namespace {

/// After what carve_step() or carve_choice() took.
void carve_select(Carver& carver, const CacheConfig& config, const PlanLimits& limits,
                  ChoiceScratch& s) {
  const runtime::Capacity capacity = runtime::step_capacity(config, limits);
  const Size lists = Size(limits.max_rows) * s.lists.selection_heads;
  // A row's last slice may be cut short.
  const Size slices =
      lists + Size(num_slices(static_cast<int>(capacity.blocks))) * s.lists.selection_heads;
  s.select.keys = carver.take<std::uint32_t>(slices * kSliceClusters);
  s.select.ids = carver.take<std::int32_t>(slices * kSliceClusters);
  s.select.counts = carver.take<std::int32_t>(slices);
  s.select.arrived = carver.take<std::uint32_t>(lists);
  s.copies = carver.take<recall::QuadCopy>(lists * s.lists.capacity);
  s.recall_counts = carver.take<RecallCounts>(config.model.num_kv_heads);
}

}  // namespace

Scratch carve_scratch(Carver& carver, const CacheConfig& config, const PlanLimits& limits) {
  Scratch s{};
  static_cast<StepScratch&>(s) = carve_step(carver, config, limits);
  carve_select(carver, config, limits, s);
  s.unwanted = carve_lists(carver, config, limits);
  s.attend_arrived = carver.take<std::uint32_t>(Size(limits.max_rows) * s.lists.selection_heads);
  if (limits.prefetch && runtime::capacity_of(config).slots > 0) {
    static_cast<StepScratch&>(s.ahead) = carve_choice(carver, config, limits);
    carve_select(carver, config, limits, s.ahead);
  }
  s.tables = carver.take<std::byte>(tables_bytes(config, limits));
  return s;
}

FixedTables carve_tables(Carver& carver, const PlanLimits& limits) {
  const Size rows = limits.max_rows;
  FixedTables t{};
  t.views = carver.take<SequenceView>(rows);
  t.adopted_views = carver.take<SequenceView>(rows);
  t.scores = carver.take<RowScores>(rows);
  t.ahead_scores = carver.take<RowScores>(rows);
  t.first_slice = carver.take<std::int64_t>(rows);
  t.retain_from = carver.take<std::uint32_t>(rows);
  t.plan_number = carver.take<std::uint32_t>(1);
  t.append_jobs = carver.take<AppendJob>(rows * 2);
  return t;
}

Size tables_bytes(const CacheConfig& config, const PlanLimits& limits) {
  const runtime::Capacity capacity = runtime::step_capacity(config, limits);
  Carver fixed(nullptr);
  carve_tables(fixed, limits);
  const Size pages = Size(capacity.row_pages) + capacity.live_pages + capacity.blocks;
  constexpr std::size_t kArrays = 4;  // of a sequence, each aligned
  const Size gaps = (Size(limits.max_rows) * kArrays + kArrays) * alignof(std::max_align_t);
  return Size(fixed.used()) + pages * sizeof(std::uint32_t) +
         Size(capacity.records) * (sizeof(SegmentView) + sizeof(SealView)) +
         Size(runtime::capacity_of(config).row_pages) * sizeof(QuadRange) + gaps;
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
