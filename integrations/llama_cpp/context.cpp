// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/context.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <numeric>

#include "clusterkv/error.hpp"
#include "integrations/llama_cpp/log.hpp"
#include "integrations/llama_cpp/summary.hpp"

namespace clusterkv::llama_cpp {
namespace {

/// Ops that only name memory.
bool computes_nothing(const ggml_tensor& node) {
  return node.op == GGML_OP_NONE || node.op == GGML_OP_VIEW || node.op == GGML_OP_RESHAPE ||
         node.op == GGML_OP_PERMUTE || node.op == GGML_OP_TRANSPOSE;
}

}  // namespace

Context::~Context() {
  try {
    if (settings_.stats) log_summary();
  } catch (const std::exception& error) {
    log(GGML_LOG_LEVEL_ERROR, error.what());
  }
}

ggml_status Context::compute(ggml_cgraph& graph) noexcept {
  try {
    for (int i = 0; i < ggml_graph_n_nodes(&graph); ++i) {
      ggml_tensor& node = *ggml_graph_node(&graph, i);
      if (computes_nothing(node)) continue;
      if (!Node::is_supported(node, 0)) {
        log(GGML_LOG_LEVEL_ERROR, fmt::format("not offered: {}", ggml_op_desc(&node)));
        return GGML_STATUS_FAILED;
      }
      answer(Node(node));
    }
    return GGML_STATUS_SUCCESS;
  } catch (const OutOfMemory& error) {
    log(GGML_LOG_LEVEL_ERROR, error.what());
    return GGML_STATUS_ALLOC_FAILED;
  } catch (const std::bad_alloc&) {
    log(GGML_LOG_LEVEL_ERROR, "no memory");
    return GGML_STATUS_ALLOC_FAILED;
  } catch (const std::exception& error) {
    log(GGML_LOG_LEVEL_ERROR, error.what());
    return GGML_STATUS_FAILED;
  }
}

void Context::answer(const Node& node) {
  if (!is_learned_) learn(node);
  const int layer = node.layer();
  for (const auto& group : groups_) {
    if (!group->has(layer)) continue;
    group->run(node);
    if (const auto notice = group->take_notice(); !notice.empty()) {
      log(GGML_LOG_LEVEL_WARN, notice);
    }
    return;
  }
  answer_exactly(node);
}

void Context::answer_exactly(const Node& node) {
  const std::vector<MaskRow> rows = node.mask_rows();
  std::vector<int> all(rows.size());
  std::iota(all.begin(), all.end(), 0);
  exact_.attend(node, rows, all, {.executor = &executor_});
  exact_rows_ += static_cast<std::int64_t>(rows.size());
}

void Context::learn(const Node& node) {
  const bool is_known = std::any_of(layers_.begin(), layers_.end(), [&](const LayerShape& shape) {
    return shape.layer == node.layer();
  });
  if (is_known) {
    make_groups();
    return;
  }
  layers_.push_back(LayerShape::of(node));
  cache_bytes_ += static_cast<std::int64_t>(ggml_nbytes(node.key().view_src) +
                                            ggml_nbytes(node.value().view_src));
}

void Context::make_groups() {
  is_learned_ = true;
  std::sort(layers_.begin(), layers_.end(),
            [](const LayerShape& a, const LayerShape& b) { return a.layer < b.layer; });
  std::int64_t most_cells = 0;
  for (const LayerShape& shape : layers_) most_cells = std::max(most_cells, shape.cells_per_stream);
  std::vector<LayerShape> left = layers_;
  // Layers with a sliding window have fewer cells: what is not in a group is answered exactly.
  std::erase_if(left, [&](const LayerShape& s) { return s.cells_per_stream < most_cells; });
  while (!left.empty()) {
    std::vector<LayerShape> same;
    const LayerShape first = left.front();
    std::copy_if(left.begin(), left.end(), std::back_inserter(same),
                 [&](const LayerShape& shape) { return shape.fits(first); });
    std::erase_if(left, [&](const LayerShape& shape) { return shape.fits(first); });
    groups_.push_back(std::make_unique<Group>(settings_, same, &executor_));
  }
}

void Context::log_summary() const {
  Summary summary{.engine_bytes = cache_bytes_, .exact_rows = exact_rows_};
  for (const auto& group : groups_) summary.add(*group);
  for (const std::string& line : summary.lines()) log(GGML_LOG_LEVEL_INFO, line);
}

}  // namespace clusterkv::llama_cpp
