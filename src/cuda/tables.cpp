// SPDX-License-Identifier: Apache-2.0
//
// What a step writes for its launches: CudaStages::write_tables().
#include <algorithm>

#include "src/cuda/stages.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

/// Tables of one sequence on the device.
SequenceTables write_sequence(const Sequence& sequence, TableWriter& writer) {
  const SequenceTables from = sequence.tables();
  return {{writer.put(from.row_pages), from.row_pages.size()},
          {writer.put(from.live_pages), from.live_pages.size()},
          {writer.put(from.blocks), from.blocks.size()},
          {writer.put(from.segments), from.segments.size()}};
}

/// A view on the device of what `view` shows on the host.
SequenceView on_device(SequenceView view, const SequenceTables& tables) {
  view.row_pages = tables.row_pages.data();
  view.live_pages = tables.live_pages.data();
  view.blocks = tables.blocks.data();
  view.segments = tables.segments.data();
  return view;
}

/// Attends to nothing: padding, which has an output if it asks for one.
SequenceView nothing(int query_row, int num_query_tokens) {
  SequenceView view{};
  view.query_row = query_row;
  view.num_query_tokens = std::max(1, num_query_tokens);
  view.everything = true;
  return view;
}

}  // namespace

void CudaStages::write_tables(DecodePlan::Impl& plan, std::span<const StaleQuads> stale,
                              void* stream) {
  CudaPlan& memory = memory_of(plan);
  const int turn = memory.turn;
  memory.turn = 1 - turn;
  memory.copied[turn].wait();
  std::byte* host = memory.staging[turn];
  std::byte* device = memory.scratch.tables;
  Carver carver(host);
  const FixedTables fixed = carve_tables(carver, plan.limits);
  TableWriter writer(host, device, carver.used());
  *fixed.plan_number = plan.number;
  memory.sequence_tables.clear();
  std::int64_t blocks = 0;
  std::int64_t slices = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(plan.limits.max_rows); ++i) {
    const bool given = i < plan.rows.size();
    const Sequence* sequence = given ? plan.rows[i].sequence : nullptr;
    SequenceView view =
        given ? nothing(plan.rows[i].query_row, plan.rows[i].num_query_tokens) : nothing(-1, 0);
    SequenceTables tables{};
    if (sequence != nullptr) {
      tables = write_sequence(*sequence, writer);
      view = on_device(plan.views[i], tables);
    }
    memory.sequence_tables.push_back(tables);
    fixed.views[i] = view;
    fixed.adopted_views[i] = view;
    fixed.adopted_views[i].everything = view.num_stored == 0;
    fixed.retain_from[i] = given ? retain_from(config_.store, plan.rows[i]) : 0;
    fixed.scores[i] =
        memory.scratch.scores_at(blocks, model_.num_q_heads, plan.limits.max_query_tokens);
    fixed.ahead_scores[i] =
        memory.scratch.ahead.scores_at(blocks, model_.num_q_heads, plan.limits.max_query_tokens);
    fixed.first_slice[i] = slices;
    blocks += view.num_blocks;
    slices += std::int64_t{num_slices(view.num_blocks)} * capacity_.selection_heads;
    AppendJob* jobs = fixed.append_jobs + 2 * i;
    jobs[0] = jobs[1] = {};
    if (sequence == nullptr) continue;
    for_each_run(plan.rows[i], [&](std::int64_t token, std::int64_t row, int num_tokens) {
      *jobs++ = {token, row, view.live_pages, num_tokens};
    });
  }
  write_seals(plan, memory, writer);
  static_assert(sizeof(QuadRange) == sizeof(StaleQuads));
  const auto* ranges = reinterpret_cast<const QuadRange*>(writer.put(stale));
  copy_async(device, host, writer.used(), stream);
  memory.copied[turn].record(stream);
  slots_.drop(ranges, static_cast<int>(stale.size()), stream);
}

void CudaStages::write_seals(const DecodePlan::Impl& plan, CudaPlan& memory, TableWriter& writer) {
  memory.host_seals.clear();
  memory.seal_sizes.clear();
  for (const bool decode : {true, false}) {
    for (std::size_t i = 0; i < plan.rows.size(); ++i) {
      const PlanRow& row = plan.rows[i];
      if (row.sequence == nullptr || (row.phase == Phase::kDecode) != decode) continue;
      const SequenceTables& tables = memory.sequence_tables[i];
      for (const Sequence::Sealing& sealing : row.sequence->sealing()) {
        const SegmentView& segment = row.sequence->segment(sealing.segment);
        const int before = std::max(0, sealing.segment - 1);
        memory.host_seals.push_back({.segment = segment,
                                     .live_pages = tables.live_pages.data(),
                                     .row_pages = tables.row_pages.data(),
                                     .blocks = tables.blocks.data() + segment.first_block,
                                     .first_live_row = sealing.first_live_row,
                                     .first_token = sealing.first_token,
                                     .num_clusters = sealing.num_clusters,
                                     .previous = row.sequence->segment(before).record});
        memory.seal_sizes.push_back({segment.num_rows, sealing.num_clusters});
      }
    }
    if (decode) memory.num_decode_seals = static_cast<int>(memory.host_seals.size());
  }
  memory.seals = writer.put(std::span<const SealView>(memory.host_seals));
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
