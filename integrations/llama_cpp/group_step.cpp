// SPDX-License-Identifier: Apache-2.0
//
// What a group does in a step: from members to a plan, and each layer's rows and answers.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "clusterkv/error.hpp"
#include "integrations/llama_cpp/group.hpp"
#include "integrations/llama_cpp/stopwatch.hpp"

namespace clusterkv::llama_cpp {
namespace {

/// Steps in a row after which cells that leave at the front are taken for a sliding window.
constexpr int kWindowSteps = 3;

/// Tokens of a prompt that are appended at once.
constexpr std::size_t kPromptPiece = 1024;

void copy_heads(const TensorView& from, float* to) {
  for (std::int64_t head = 0; head < from.shape[1]; ++head) {
    std::memcpy(to + head * from.shape[2], static_cast<float*>(from.data) + head * from.stride[1],
                static_cast<std::size_t>(from.shape[2]) * sizeof(float));
  }
}

void copy_heads(const float* from, const TensorView& to) {
  for (std::int64_t head = 0; head < to.shape[1]; ++head) {
    std::memcpy(static_cast<float*>(to.data) + head * to.stride[1], from + head * to.shape[2],
                static_cast<std::size_t>(to.shape[2]) * sizeof(float));
  }
}

}  // namespace

/// Calls fn, and where there is no room for it, gives up sequences that were not seen for long.
template <class Fn>
auto Group::with_room(const Fn& fn) {
  while (true) {
    try {
      return fn();
    } catch (const CapacityError&) {
      if (!evict()) throw;
    }
  }
}

void Group::plan_step(const Node& node) {
  const CellPrint print = [&](int stream, int cell) { return node.print(stream, cell); };
  for (const SequenceId id : sets_.drop_overwritten(print)) {
    cache_->remove(id);
    ++counts_.overwritten;
  }
  members_ = sets_.match(rows_, print);
  if (members_.empty() || watch_for_windows()) return;
  if (static_cast<int>(members_.size()) > limits_.max_rows) {
    throw CapacityError(
        fmt::format("{} sequences in a step, expected at most {} "
                    "(CLUSTERKV_MAX_SEQUENCES)",
                    members_.size(), limits_.max_rows));
  }
  for (Member& member : members_) apply(member);
  let_prompts_wait(print);
  if (members_.empty()) return;
  for (const Member& member : members_) append_waiting(*member.set, member.set->cells.size());
  set_rows();
  make_plan();
  for (const Member& member : members_) {
    CellSets::append(*member.set, member.added, print);
    member.set->cached = member.set->cells.size();
  }
  has_plan_ = true;
}

void Group::make_plan() {
  with_room([&] {
    if (plan_) {
      cache_->update(*plan_, step_rows_);
    } else {
      plan_ = cache_->plan(step_rows_, limits_, {workspace_.get(), workspace_bytes_});
    }
    return true;
  });
}

/// Of a prompt, this step's token is not in the caches of later layers yet, and nothing says which cell is
/// its. So a member with many new cells is answered exactly, and appended in its next step, when all are.
void Group::let_prompts_wait(const CellPrint& print) {
  std::erase_if(members_, [&](const Member& member) {
    const auto prompt = static_cast<int>(member.added.size() - member.rows.size());
    if (prompt < config_.cluster.window_tokens) return false;
    CellSets::append(*member.set, member.added, print);
    return true;
  });
}

/// Appends tokens that wait, until the cache has the first `count`, in all layers. Piece by piece: what
/// is pending at once stays in memory.
void Group::append_waiting(CellSet& set, std::size_t count) {
  if (set.cached >= count) return;
  double seconds = 0;
  {
    const Stopwatch watch(seconds);
    while (set.cached < count) {
      const std::size_t tokens = std::min(kPromptPiece, count - set.cached);
      const bool is_last = set.cached + tokens == count;
      step_rows_ = {{.id = set.id,
                     .num_new_tokens = static_cast<int>(tokens),
                     .num_query_tokens = 0,
                     .phase = is_last ? Phase::kPrefillLast : Phase::kPrefill}};
      make_plan();
      const CacheRows::Run run{set.stream, std::span(set.cells).subspan(set.cached, tokens)};
      for (int i = 0; i < num_layers(); ++i) {
        const LayerShape& shape = shapes_[static_cast<std::size_t>(i)];
        cache_->append(i, *plan_, keys_.view(shape.key, {&run, 1}),
                       values_.view(shape.value, {&run, 1}), {.executor = executor_});
      }
      set.cached += tokens;
    }
  }
  times_.append += seconds;
  times_.match -= seconds;
}

void Group::apply(Member& member) {
  const int stream = rows_[static_cast<std::size_t>(member.rows.front())].stream;
  const auto kept = static_cast<std::int64_t>(member.kept);
  switch (member.origin) {
    case Member::Origin::kContinued:
      if (member.kept == member.set->cells.size()) return;
      ++counts_.cuts;
      if (member.kept < member.set->cached) {
        if (!with_room([&] { return cache_->truncate(member.set->id, kept); })) {
          begin_anew(*member.set);
        }
      }
      CellSets::cut(*member.set, member.kept);
      return;
    case Member::Origin::kForked: {
      ++counts_.forks;
      append_waiting(*member.set, member.kept);
      SequenceId id = with_room([&] { return cache_->fork(member.set->id, kept); });
      const bool is_forked = id != kNoSequence;
      if (!is_forked) id = with_room([&] { return cache_->add_sequence(); });
      CellSet& fork = sets_.add(id, stream);
      fork.cells.assign(member.set->cells.begin(), member.set->cells.begin() + kept);
      fork.prints.assign(member.set->prints.begin(), member.set->prints.begin() + kept);
      fork.cached = is_forked ? member.kept : 0;
      member.set = &fork;
      return;
    }
    case Member::Origin::kNew:
      member.set = &sets_.add(with_room([&] { return cache_->add_sequence(); }), stream);
  }
}

/// Where rows are the engine's, a segment that would be cut is clustered anew, from the engine's cells.
void Group::begin_anew(CellSet& set) {
  cache_->remove(set.id);
  set.id = with_room([&] { return cache_->add_sequence(); });
  set.cached = 0;
}

void Group::set_rows() {
  step_rows_.clear();
  answer_all_exactly();
  for (const Member& member : members_) {
    const int queries = static_cast<int>(member.rows.size());
    const int added = static_cast<int>(member.added.size());
    const bool answers = member.is_block && queries <= limits_.max_query_tokens;
    step_rows_.push_back({.id = member.set->id,
                          .num_new_tokens = added,
                          .num_query_tokens = answers ? queries : 0,
                          .phase = Phase::kDecode});
    if (answers) attended_.insert(attended_.end(), member.rows.begin(), member.rows.end());
  }
  std::erase_if(exact_, [&](int row) {
    return std::find(attended_.begin(), attended_.end(), row) != attended_.end();
  });
}

void Group::append(int index, const Node& node) {
  const Stopwatch watch(times_.append);
  std::vector<CacheRows::Run> runs;
  for (const Member& member : members_) {
    runs.push_back({node.local_stream(member.set->stream), member.added});
  }
  cache_->append(index, *plan_, keys_.view(node.key(), runs), values_.view(node.value(), runs),
                 {.executor = executor_});
}

void Group::attend(int index, const Node& node) {
  const Stopwatch watch(times_.attend);
  if (attended_.size() == 1) {
    attend(index, node, node.query(attended_[0]), node.out(attended_[0]));
    return;
  }
  const auto rows = static_cast<std::int64_t>(attended_.size());
  const std::int64_t heads = node.num_q_heads(), dim = node.head_dim();
  queries_.resize(static_cast<std::size_t>(rows * heads * dim));
  outs_.resize(queries_.size());
  for (std::int64_t i = 0; i < rows; ++i) {
    copy_heads(node.query(attended_[static_cast<std::size_t>(i)]),
               queries_.data() + i * heads * dim);
  }
  attend(index, node, contiguous_view(queries_.data(), DType::kF32, {rows, heads, dim}),
         contiguous_view(outs_.data(), DType::kF32, {rows, heads, dim}));
  for (std::int64_t i = 0; i < rows; ++i) {
    copy_heads(outs_.data() + i * heads * dim, node.out(attended_[static_cast<std::size_t>(i)]));
  }
}

void Group::attend(int index, const Node& node, const TensorView& queries, const TensorView& outs) {
  if (ClusterKVCache* cache = cache_->cache(); cache != nullptr) {
    cache->attend(index, *plan_, {queries, {outs}, node.sink_logits()}, {.executor = executor_});
  } else {
    attend_in_place(index, node, queries, outs);
  }
}

bool Group::watch_for_windows() {
  const bool left = std::any_of(members_.begin(), members_.end(),
                                [](const Member& member) { return member.front_left; });
  windows_seen_ = left ? windows_seen_ + 1 : 0;
  if (windows_seen_ < kWindowSteps) return false;
  notice_ = fmt::format("layers {} .. {} attend to a sliding window: answered exactly from now on",
                        layers_.front(), layers_.back());
  plan_.reset();
  cache_.reset();
  sets_ = {};
  workspace_.reset();
  return true;
}

void Group::forget_all() {
  has_plan_ = false;
  for (const CellSet& set : sets_.all()) cache_->remove(set.id);
  sets_ = {};
}

bool Group::evict() {
  CellSet* set = sets_.oldest();
  if (set == nullptr) return false;
  cache_->remove(set->id);
  sets_.remove(*set);
  ++counts_.evictions;
  return true;
}

}  // namespace clusterkv::llama_cpp
