// SPDX-License-Identifier: Apache-2.0
//
// The ops of this stage for the instruction set that a translation unit is compiled for.
#pragma once

#include "kernels/select/select.hpp"

namespace clusterkv::select::CLUSTERKV_ISA {

void score_clusters(const ScoreParams& params, const ScoreItem& item);
void select_clusters(const SelectParams& params, int row, int head, const SelectScratch& scratch);
void expand_rows(const SequenceView& row, const IndexStore& index, int kv_head,
                 const SelectionLists& lists, int list_row, int head);
HeadTotals combine_blocks(const SequenceView& row, const RowScores& scores, int kv_head, int group,
                          int member);

}  // namespace clusterkv::select::CLUSTERKV_ISA
