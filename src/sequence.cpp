// SPDX-License-Identifier: Apache-2.0
#include "src/sequence.hpp"

#include <algorithm>
#include <numeric>

#include "kernels/cluster/rules.hpp"
#include "kernels/index/rules.hpp"
#include "kernels/recall/rules.hpp"

namespace clusterkv {
namespace {

/// The page, or another one in its place if it is shared, which is to begin with the same rows.
std::uint32_t own_page(std::uint32_t page, int num_rows, PagePool& pool,
                       std::vector<PageCopy>& copies) {
  if (!pool.is_shared(page)) return page;
  const std::uint32_t own = pool.take();
  if (num_rows > 0) copies.push_back({page, own, num_rows});
  pool.give_back(page);
  return own;
}

}  // namespace

std::int64_t pages_for(std::int64_t rows) {
  return (rows + kPageRows - 1) / kPageRows;
}

int segment_clusters(const ClusterConfig& config, int num_tokens, Phase phase) {
  return cluster::num_clusters(num_tokens, config.tokens_per_cluster,
                               phase == Phase::kDecode ? config.min_window_clusters : 1);
}

Sequence::Sequence(SequenceId id, const CacheConfig& config, const Capacity& capacity)
    : id_(id),
      config_(config.cluster),
      sink_rows_(capacity.sink_pages * kPageRows),
      first_pending_(sink_rows_),
      appended_(static_cast<std::size_t>(config.model.num_layers), 0) {
  row_pages_.reserve(static_cast<std::size_t>(pages_for(config.max_tokens)));
  live_pages_.reserve(
      static_cast<std::size_t>(pages_for(config.max_tokens) + capacity.sink_pages + 2));
  blocks_.reserve(static_cast<std::size_t>(capacity.blocks));
  segments_.reserve(static_cast<std::size_t>(capacity.records));
  // A step seals all its prompt's segments, or the windows a late kDecode finds pending.
  sealing_.reserve(static_cast<std::size_t>(capacity.records));
  seal_sizes_.reserve(static_cast<std::size_t>(capacity.records));
}

int Sequence::num_sinks() const {
  return static_cast<int>(std::min<std::int64_t>(config_.sink_tokens, length_));
}

int Sequence::claim(std::uint64_t check, int row) {
  const int before = claimed_in_ == check ? claimed_by_ : -1;
  claimed_in_ = check;
  claimed_by_ = row;
  return before;
}

void Sequence::decide_seals(const StepRow& row, std::vector<int>& num_tokens) const {
  num_tokens.clear();
  const bool decode = row.phase == Phase::kDecode;
  std::int64_t stored = num_stored_;
  for (const Sealing& done : sealing_) stored += segment(done.segment).num_rows;
  // Decode leaves out this step's tokens: sealing a token on arrival would hide it.
  const std::int64_t length = length_ + (decode ? 0 : row.num_new_tokens);
  std::int64_t pending = length - std::min<std::int64_t>(config_.sink_tokens, length) - stored;
  const int whole = decode ? config_.window_tokens : config_.segment_tokens;
  for (; whole > 0 && pending >= whole; pending -= whole) num_tokens.push_back(whole);
  if (row.phase == Phase::kPrefillLast && pending >= config_.window_tokens) {
    num_tokens.push_back(static_cast<int>(pending));
  }
}

/// visit(page, num_rows) for live pages at hand that the row's new tokens go to, and how many rows come
/// before them.
template <class Visit>
void Sequence::for_each_written_page(const StepRow& row, const Visit& visit) const {
  const auto visit_pages = [&](std::int64_t first, std::int64_t last) {
    if (first >= last) return;
    const auto held = static_cast<std::int64_t>(live_pages_.size());
    for (std::int64_t page = first / kPageRows; page < std::min(held, pages_for(last)); ++page) {
      visit(static_cast<std::size_t>(page),
            static_cast<int>(std::max<std::int64_t>(0, first - page * kPageRows)));
    }
  };
  const std::int64_t sinks =
      std::min<std::int64_t>(config_.sink_tokens, length_ + row.num_new_tokens);
  visit_pages(num_sinks(), sinks);
  const std::int64_t first = first_pending_ + length_ - first_pending_token();
  visit_pages(first, first + row.num_new_tokens - (sinks - num_sinks()));
}

Sequence::LivePages Sequence::decide_live_pages(const StepRow& row, const PagePools& pools) const {
  LivePages result{};
  std::int64_t sealed = 0;
  for (const Sealing& done : sealing_) sealed += segment(done.segment).num_rows;
  result.given_back = (first_pending_ + sealed - sink_rows_) / kPageRows;
  for (std::int64_t i = 0; i < result.given_back; ++i) {
    const auto page = static_cast<std::size_t>(sink_rows_ / kPageRows + i);
    result.freed += pools.live.is_shared(live_pages_[page]) ? 0 : 1;
  }
  const std::int64_t length = length_ + row.num_new_tokens;
  const std::int64_t sinks = std::min<std::int64_t>(config_.sink_tokens, length);
  const std::int64_t pending = length - sinks - num_stored_ - sealed;
  const std::int64_t pages =
      pages_for(first_pending_ + sealed - result.given_back * kPageRows + pending);
  const auto held = static_cast<std::int64_t>(live_pages_.size()) - result.given_back;
  result.taken = std::max<std::int64_t>(0, pages - held);
  for_each_written_page(row, [&](std::size_t page, int) {
    result.copied += pools.live.is_shared(live_pages_[page]) ? 1 : 0;
  });
  return result;
}

Sequence::RowPages Sequence::decide_row_pages(const StepRow& row, const PagePools& pools,
                                              std::vector<int>& sizes) const {
  decide_seals(row, sizes);
  if (sizes.empty()) return {};
  const std::int64_t sealed = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  const auto held = static_cast<std::int64_t>(row_pages_.size());
  RowPages pages{pages_for(segment_rows() + sealed) - held, {}};
  if (segment_rows() % kPageRows != 0 && pools.rows.is_shared(row_pages_.back())) {
    pages.copied = row_pages_.back();
    ++pages.taken;
  }
  return pages;
}

void Sequence::begin_step(const StepRow& row, std::uint32_t plan_number, PagePools& pools) {
  decide_seals(row, seal_sizes_);
  const LivePages pages = decide_live_pages(row, pools);
  for_each_written_page(row, [&](std::size_t page, int num_rows) {
    live_pages_[page] = own_page(live_pages_[page], num_rows, pools.live, pools.live_copies);
  });
  commit_sealing(sealing_.size(), pools);
  give_live_pages_back(pages.given_back, pools);
  step_start_ = length_;
  length_ += row.num_new_tokens;
  pools.tokens += row.num_new_tokens;
  past_plans_[static_cast<std::size_t>(steps_++ % kHistory)] = plan_number_;
  plan_number_ = plan_number;
  in_step_ = true;
  for (std::int64_t i = 0; i < pages.taken; ++i) live_pages_.push_back(pools.live.take());
  for (const int num_tokens : seal_sizes_) seal_segment(num_tokens, row.phase, pools);
}

/// Makes the first `count` sealed segments visible and forgets the others.
void Sequence::commit_sealing(std::size_t count, PagePools& pools) {
  for (std::size_t i = 0; i < count; ++i) {
    const SegmentView& sealed = segment(sealing_[i].segment);
    num_stored_ += sealed.num_rows;
    first_pending_ += sealed.num_rows;
    visible_blocks_ += sealed.num_blocks;
    ++visible_segments_;
    // The page it begins in may have quads in slots: the one that it shares with the segment before,
    // and those of a segment that was there before a cut.
    if (sealed.first_row % kPageRows == 0) continue;
    pools.stale.add(recall::quad_of(paged_row(row_pages_.data(), sealed.first_row)));
  }
  sealing_.clear();
}

void Sequence::give_live_pages_back(std::int64_t count, PagePools& pools) {
  const auto begin = live_pages_.begin() + sink_rows_ / kPageRows;
  for (auto page = begin; page != begin + count; ++page) pools.live.give_back(*page);
  live_pages_.erase(begin, begin + count);
  first_pending_ -= count * kPageRows;
}

void Sequence::seal_segment(int num_tokens, Phase phase, PagePools& pools) {
  const int clusters = segment_clusters(config_, num_tokens, phase);
  const std::int64_t first_row = segment_rows();
  add_segment({num_tokens, index::blocks_of(clusters, kBlockClusters)}, pools);
  sealing_.push_back({.segment = static_cast<int>(segments_.size()) - 1,
                      .num_clusters = clusters,
                      .first_live_row = first_pending_ + first_row - num_stored_,
                      .first_token = num_sinks() + first_row});
}

void Sequence::add_segment(const SegmentSize& size, PagePools& pools) {
  const std::int64_t first_row = segment_rows();
  SegmentView added{};
  added.record = pools.records.take();
  added.first_block = static_cast<std::int32_t>(blocks_.size());
  added.num_blocks = size.num_blocks;
  added.num_rows = size.num_rows;
  added.first_row = first_row;
  for (int i = 0; i < added.num_blocks; ++i) blocks_.push_back(pools.blocks.take());
  if (first_row % kPageRows != 0) {
    row_pages_.back() = own_page(row_pages_.back(), static_cast<int>(first_row % kPageRows),
                                 pools.rows, pools.row_copies);
  }
  while (static_cast<std::int64_t>(row_pages_.size()) < pages_for(first_row + size.num_rows)) {
    row_pages_.push_back(pools.rows.take());
  }
  segments_.push_back(added);
}

SequenceView Sequence::view() const {
  SequenceView view{};
  view.row_pages = row_pages_.data();
  view.live_pages = live_pages_.data();
  view.first_pending = first_pending_;
  view.segments = segments_.data();
  view.blocks = blocks_.data();
  view.num_segments = visible_segments_;
  view.num_blocks = visible_blocks_;
  view.num_sinks = num_sinks();
  view.num_stored = num_stored_;
  view.num_pending = static_cast<std::int32_t>(length_ - first_pending_token());
  return view;
}

std::uint32_t Sequence::past_plan(int steps) const {
  if (steps >= steps_) return 1;
  return past_plans_[static_cast<std::size_t>((steps_ - steps) % kHistory)];
}

std::int64_t Sequence::live_row(std::int64_t token) const {
  return token < num_sinks() ? token : first_pending_ + token - first_pending_token();
}

int Sequence::missing_layer() const {
  for (std::size_t layer = 0; layer < appended_.size(); ++layer) {
    if (!was_appended(static_cast<int>(layer))) return static_cast<int>(layer);
  }
  return -1;
}

}  // namespace clusterkv
