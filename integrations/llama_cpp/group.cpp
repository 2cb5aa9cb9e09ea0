// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/group.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "clusterkv/error.hpp"
#include "integrations/llama_cpp/stopwatch.hpp"

namespace clusterkv::llama_cpp {
namespace {

DType stored_as(ggml_type type) {
  return is_float_type(type) ? dtype_of(type) : DType::kF16;  // quantised rows: f16 holds them well
}

CacheConfig make_config(const Settings& settings, const std::vector<LayerShape>& layers) {
  const LayerShape& shape = layers.front();
  ModelShape model{.num_layers = static_cast<int>(layers.size()),
                   .num_q_heads = shape.num_q_heads,
                   .num_kv_heads = shape.num_kv_heads,
                   .head_dim = shape.head_dim,
                   .kv_dtype = stored_as(shape.type),
                   .softmax_scale = shape.scale,
                   .logit_softcap = shape.softcap};
  for (const LayerShape& layer : layers) model.layers.push_back(layer.layer);
  CacheConfig config = settings.config(model);
  config.max_sequences = settings.max_sequences;
  // Sequences that are gone are seen to be so only when their cells are filled again.
  config.max_tokens = settings.max_tokens > 0 ? settings.max_tokens : 2 * shape.num_cells;
  return config;
}

/// Rows of a quantised cache cannot be read in place.
bool needs_rows(const Settings& settings, const LayerShape& shape) {
  return !settings.engine_rows || !is_float_type(shape.type);
}

PlanLimits make_limits(const CacheConfig& config, bool has_rows) {
  // A selector names no cells for each query of a block.
  const bool is_shared = has_rows && config.select.grouping == HeadGrouping::kShared;
  return {.max_rows = config.max_sequences,
          .max_new_tokens = static_cast<int>(config.max_tokens),
          .max_query_tokens = is_shared ? kMaxQueryTokens : 1};
}

}  // namespace

LayerShape LayerShape::of(const Node& node) {
  return {.layer = node.layer(),
          .mask = node.mask(),
          .cells_per_stream = node.cells_per_stream(),
          .num_cells = node.num_cells(),
          .head_dim = node.head_dim(),
          .num_q_heads = node.num_q_heads(),
          .num_kv_heads = node.num_kv_heads(),
          .type = node.key().type,
          .scale = node.scale(),
          .softcap = node.softcap(),
          .key = whole_cache(node.key()),
          .value = whole_cache(node.value())};
}

bool LayerShape::fits(const LayerShape& other) const {
  return mask == other.mask && cells_per_stream == other.cells_per_stream &&
         num_cells == other.num_cells && head_dim == other.head_dim &&
         num_q_heads == other.num_q_heads && num_kv_heads == other.num_kv_heads &&
         type == other.type && scale == other.scale && softcap == other.softcap;
}

Group::Group(const Settings& settings, const std::vector<LayerShape>& layers, Executor* executor)
    : settings_(settings),
      shapes_(layers),
      config_(make_config(settings, layers)),
      executor_(executor) {
  layers_ = config_.model.layers;
  const bool has_rows = needs_rows(settings, layers.front());
  if (has_rows && settings.engine_rows) notice_ = "a quantised cache: rows are held twice";
  limits_ = make_limits(config_, has_rows);
  workspace_bytes_ = Clusters::workspace_bytes(config_, has_rows, limits_);
  workspace_.reset(new (std::align_val_t{64}) std::byte[workspace_bytes_]);
  cache_.emplace(config_, has_rows, Resources{.executor = executor, .memory = &memory_});
}

int Group::index_of(int layer) const {
  const auto found = std::lower_bound(layers_.begin(), layers_.end(), layer);
  return found != layers_.end() && *found == layer ? static_cast<int>(found - layers_.begin()) : -1;
}

void Group::run(const Node& node) {
  const int index = index_of(node.layer());
  try {
    if (index == 0) begin_step(node);
    if (has_plan_) {
      append(index, node);
      if (!attended_.empty()) attend(index, node);
    }
    const Stopwatch watch(times_.attend);
    exact_attention_.attend(node, rows_, exact_, {.executor = executor_});
  } catch (...) {
    forget_all();
    throw;
  }
  counts_.exact_rows += static_cast<std::int64_t>(exact_.size());
  counts_.cache_rows += static_cast<std::int64_t>(attended_.size());
}

void Group::begin_step(const Node& node) {
  const Stopwatch watch(times_.match);
  ++counts_.steps;
  rows_ = node.mask_rows();
  answer_all_exactly();
  if (!cache_) return;
  try {
    plan_step(node);
  } catch (const StepError&) {
    // A step was left unfinished, by an engine that gave it up.
    forget_all();
    plan_step(node);
  } catch (const CapacityError& error) {
    if (counts_.refused_steps++ == 0) {
      notice_ = fmt::format("no room, steps are answered exactly: {}", error.what());
    }
    answer_all_exactly();
  }
}

void Group::answer_all_exactly() {
  has_plan_ = false;
  attended_.clear();
  exact_.resize(rows_.size());
  std::iota(exact_.begin(), exact_.end(), 0);
}

}  // namespace clusterkv::llama_cpp
