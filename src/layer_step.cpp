// SPDX-License-Identifier: Apache-2.0
#include "src/layer_step.hpp"

#include "src/runtime/check.hpp"

namespace clusterkv {

using runtime::check_tensor;
using runtime::kFloatTypes;
using runtime::LastStride;

LayerStep::LayerStep(Core& core, int layer, const DecodePlan& plan, const TensorView& query,
                     const Stream& stream)
    : model_(core.settings().model),
      backend_(core.backend()),
      stages_(core.stages()),
      call_(core.layer_call(layer, plan, stream)) {
  const std::int64_t rows = call_.plan.num_query_tokens;
  check_tensor(query, {"query", {rows, model_.num_q_heads, model_.head_dim}, kFloatTypes},
               backend_);
  stages_.take_query(call_, query);
}

void LayerStep::check_out(const AttentionOut& out) const {
  const std::int64_t rows = call_.plan.num_query_tokens;
  check_tensor(out.out,
               {"out", {rows, model_.num_q_heads, model_.value_dim}, kFloatTypes, LastStride::kOne},
               backend_);
  if (out.lse.empty()) return;
  check_tensor(out.lse, {"lse", {rows, model_.num_q_heads}, {DType::kF32}}, backend_);
}

void LayerStep::check_args(const AttendArgs& args) const {
  check_out(args.out);
  if (args.sink_logits.empty()) return;
  check_tensor(args.sink_logits, {"sink_logits", {model_.num_q_heads}, {DType::kF32}}, backend_);
}

void LayerStep::adopt(const Selection& selection) {
  // From here on rows attend to what the caller chose, however short their sequences are.
  LayerCall adopted = call_;
  adopted.adopted = true;
  stages_.adopt(adopted, selection);
  call_.adopted = true;
}

}  // namespace clusterkv
