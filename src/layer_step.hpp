// SPDX-License-Identifier: Apache-2.0
//
// One layer of one step: the stages in the order of the pipeline, on the plan's workspace.
#pragma once

#include <cstdint>

#include "clusterkv/step.hpp"
#include "src/attend/attend_stage.hpp"
#include "src/core.hpp"
#include "src/select/select_stage.hpp"
#include "src/selection.hpp"

namespace clusterkv {

enum class Part : std::uint8_t { kRowsAndTail, kTailOnly };

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

  void score();   ///< centroids against queries
  void choose();  ///< top clusters up to the budget
  /// Takes a choice made elsewhere; what is not in it goes to the tail.
  /// \throws ShapeError, DTypeError, ValueError, CapacityError
  void adopt(const Selection& selection);
  void recall();  ///< rows of the chosen clusters into slots
  void attend(const AttentionOut& out, Part part = Part::kRowsAndTail);

  [[nodiscard]] Selection selection() const;

 private:
  [[nodiscard]] select::ScoreParams score_params() const;
  [[nodiscard]] select::SelectParams select_params() const;
  [[nodiscard]] attend::AttendParams attend_params() const;
  void combine_totals();
  void copy_lists(const SelectionReader& reader);
  void count(Part part);
  void count_list(int row, int head, Part part, StepStats& stats) const;

  Core& core_;
  int layer_;
  const ModelShape& model_;
  const SelectConfig& select_;
  const DecodePlan& handle_;
  DecodePlan::Impl& plan_;
  Executor& executor_;
  bool dense_;
  int num_rows_;
  const SequenceView* views_;  ///< [row]; the plan's, or those of an adopted choice
};

}  // namespace clusterkv
