// SPDX-License-Identifier: Apache-2.0
#include "src/recall/recall_stage.hpp"

#include <algorithm>
#include <span>

#include "kernels/common/carve.hpp"
#include "src/runtime/parallel.hpp"

namespace clusterkv::recall {
namespace {

std::size_t num_planes(const CacheConfig& config) {
  return static_cast<std::size_t>(runtime::count_clustered_layers(config)) *
         static_cast<std::size_t>(config.model.num_kv_heads);
}

std::int64_t num_quads(const runtime::Capacity& capacity) {
  return capacity.slots == 0 ? 0 : capacity.row_pages * kPageRows / kQuadRows;
}

std::size_t plane_bytes(const CacheConfig& config, const runtime::Capacity& capacity) {
  return (Size(capacity.slots) * kQuadRows * row_bytes(config.model)).get();
}

std::size_t directory_bytes(const CacheConfig& config, const runtime::Capacity& capacity) {
  return (Size(num_planes(config)) * num_quads(capacity) * sizeof(std::uint32_t)).get();
}

/// visit(rows) for quads of a list that follow each other in the store.
template <class Visit>
void for_each_run(std::span<const QuadCopy> quads, const Visit& visit) {
  for (std::size_t i = 0; i < quads.size();) {
    const std::size_t begin = i++;
    while (i < quads.size() && quads[i].quad == quads[i - 1].quad + 1) ++i;
    visit(RowRun{quads[begin].quad * kQuadRows, static_cast<std::int64_t>(i - begin) * kQuadRows});
  }
}

/// All that a plan reads, so that a disk is asked for all of it before anyone waits. Whether it is there.
bool fetch_quads(const StoredRows& stored, int layer, int kv_head, const RecallPlan& plan) {
  if (!stored.is_in_file(layer)) return true;
  const std::span<const QuadCopy> quads(plan.copies, static_cast<std::size_t>(plan.num_copies));
  for_each_run(quads, [&](const RowRun& run) { stored.expect(layer, kv_head, run); });
  bool is_there = true;
  for_each_run(quads, [&](const RowRun& run) {
    is_there = is_there && stored.try_fetch(layer, kv_head, run, Access::kRead);
  });
  return is_there;
}

}  // namespace

std::size_t SlotPools::bytes(const CacheConfig& config, const runtime::Capacity& capacity) {
  return (Size(num_planes(config)) * plane_bytes(config, capacity) +
          directory_bytes(config, capacity))
      .get();
}

SlotPools::SlotPools(const CacheConfig& config, const runtime::Capacity& capacity,
                     MemoryResource& memory)
    : num_dense_(runtime::count_dense_layers(config)),
      num_kv_heads_(config.model.num_kv_heads),
      num_quads_(num_quads(capacity)),
      plane_bytes_(plane_bytes(config, capacity)),
      directory_(memory, directory_bytes(config, capacity), "slot directory"),
      slots_(memory, num_planes(config) * plane_bytes_, "slot pool") {
  if (capacity.slots == 0) return;
  auto* directory = reinterpret_cast<std::uint32_t*>(directory_.data());
  pools_.reserve(num_planes(config));
  for (std::size_t i = 0; i < num_planes(config); ++i, directory += num_quads_) {
    pools_.emplace_back(directory, num_quads_, capacity.slots);
  }
}

SlotView SlotPools::layer(int layer) const {
  if (!exist()) return {};
  const std::size_t first = plane(layer, 0);
  return {.directory = reinterpret_cast<const std::uint32_t*>(directory_.data()) +
                       first * static_cast<std::size_t>(num_quads_),
          .num_quads = num_quads_,
          .slots = slots_.data() + first * plane_bytes_,
          .head_stride = plane_bytes_};
}

void SlotPools::recall(int layer, const RecallStep& step, Executor& executor) {
  const SlotView view = SlotPools::layer(layer);
  const CopyParams copy{
      .stored = step.stored.layer(layer), .slots = view.slots, .head_stride = view.head_stride};
  const int served = step.lists.selection_heads / num_kv_heads_;
  const std::int64_t copies_stride = std::int64_t{step.num_rows} * served * step.lists.capacity;
  runtime::parallel_for(executor, num_kv_heads_, [&](int kv_head) {
    RecallPlan plan{.copies = step.copies + kv_head * copies_stride};
    SlotPool& pool = pools_[plane(layer, kv_head)];
    for (int row = 0; row < step.num_rows; ++row) {
      const int first = kv_head * served;
      // What attends to everything has no tail.
      const RecallRequest request{step.lists.rows_of(row, first),
                                  step.lists.num_rows + step.lists.list(row, first),
                                  served,
                                  step.lists.capacity,
                                  step.rows[row].is_scored() ? step.max_transfers : kNoLimit,
                                  copy.stored.num_near};
      pool.look_up(request, step.plan_number, step.retain_from[row], plan);
      if (plan.num_copies - plan.first_copy > request.max_transfers) {
        for (int i = 0; i < served; ++i) pool.leave_out(step.lists, row, first + i, plan);
      }
      pool.give_slots(step.plan_number, plan);
    }
    plan.failed = !fetch_quads(step.stored, layer, kv_head, plan);
    if (!plan.failed) cpu().copy_quads(copy, kv_head, plan.copies, plan.num_copies);
    step.plans[kv_head] = plan;
  });
  bool failed = false;
  for (int kv_head = 0; kv_head < num_kv_heads_; ++kv_head) {
    const RecallPlan& plan = step.plans[kv_head];
    if (!plan.failed) continue;
    failed = true;
    for (int i = 0; i < plan.num_copies; ++i) {
      pools_[plane(layer, kv_head)].drop(plan.copies[i].quad, 1);
    }
  }
  if (failed) step.stored.fail_fetch();
}

void SlotPools::drop(std::uint32_t first_quad, std::uint32_t count) noexcept {
  for (SlotPool& pool : pools_) pool.drop(first_quad, count);
}

}  // namespace clusterkv::recall
