// SPDX-License-Identifier: Apache-2.0
//
// One layer of one step: the stages in the order of the pipeline, on the cache's backend.
#pragma once

#include "clusterkv/step.hpp"
#include "src/core.hpp"
#include "src/stages.hpp"

namespace clusterkv {

class LayerStep {
 public:
  /// Checks the call and takes the queries over.
  /// \throws ShapeError, DTypeError, StepError
  LayerStep(Core& core, int layer, const DecodePlan& plan, const TensorView& query,
            const Stream& stream);

  /// \throws ShapeError, DTypeError
  void check_out(const AttentionOut& out) const;
  /// check_out(), and nothing is asked for that is not part of this version.
  /// \throws ConfigError  if there are learned sinks
  void check_args(const AttendArgs& args) const;

  void score() { stages_.score(call_); }    ///< centroids against queries
  void choose() { stages_.choose(call_); }  ///< top clusters up to the budget
  /// Takes a choice made elsewhere; what is not in it goes to the tail.
  /// \throws ShapeError, DTypeError, ValueError, CapacityError
  void adopt(const Selection& selection);
  void recall() { stages_.recall(call_); }  ///< rows of the chosen clusters into slots
  void attend(const AttentionOut& out, const TensorView& sink_logits,
              Part part = Part::kRowsAndTail) {
    stages_.attend(call_, out, sink_logits, part);
  }

  [[nodiscard]] Selection selection() const { return stages_.selection(call_); }

 private:
  const ModelShape& model_;
  Backend backend_;
  Stages& stages_;
  LayerCall call_;
};

}  // namespace clusterkv
