// SPDX-License-Identifier: Apache-2.0
//
// What a saved sequence has of one layer and KV head, where it lies.
#pragma once

#include "src/cpu/read_rows.hpp"
#include "src/stages.hpp"

namespace clusterkv::cpu {

/// `index` is not read if the layer is dense.
struct SavedPlane {
  const RowSource& layer;
  const IndexStore& index;
  int head;
  bool dense;
};

/// Stages::visit_parts() of one plane.
void visit_parts(const SavedPlane& plane, const Sequence& sequence, PartVisitor& visitor);

/// Stages::check_parts() of one plane.
void check_parts(const SavedPlane& plane, const Sequence& sequence);

}  // namespace clusterkv::cpu
