// SPDX-License-Identifier: Apache-2.0
//
// How sequences are forked, restored, cut and ended: what is shared, and who gives a page back.
#include <algorithm>

#include "src/sequence.hpp"

namespace clusterkv {

void Sequence::release(PagePools& pools) noexcept {
  pools.tokens -= own_tokens();
  drop_segments(0, pools);
  drop_live_pages(0, pools);
}

void Sequence::share(const Sequence& parent, PagePools& pools) noexcept {
  // Tables are of the same reserved size, so that copies take no memory.
  length_ = parent.length_;
  num_stored_ = parent.num_stored_;
  first_pending_ = parent.first_pending_;
  visible_segments_ = parent.visible_segments_;
  visible_blocks_ = parent.visible_blocks_;
  step_start_ = parent.step_start_;
  row_pages_ = parent.row_pages_;
  live_pages_ = parent.live_pages_;
  blocks_ = parent.blocks_;
  segments_ = parent.segments_;
  sealing_ = parent.sealing_;
  for (const std::uint32_t page : row_pages_) pools.rows.share(page);
  for (const std::uint32_t page : live_pages_) pools.live.share(page);
  for (const std::uint32_t block : blocks_) pools.blocks.share(block);
  for (const SegmentView& s : segments_) pools.records.share(s.record);
  pools.tokens += own_tokens();
}

void Sequence::take_over(std::int64_t length, std::span<const SegmentSize> segments,
                         PagePools& pools) noexcept {
  length_ = length;
  for (const SegmentSize& size : segments) {
    add_segment(size, pools);
    num_stored_ += size.num_rows;
    visible_blocks_ += size.num_blocks;
    ++visible_segments_;
  }
  const std::int64_t pending = length_ - first_pending_token();
  for (std::int64_t i = pages_for(sink_rows_ + pending); i > 0; --i) {
    live_pages_.push_back(pools.live.take());
  }
  pools.tokens += length;
}

Cut Sequence::decide_cut(std::int64_t num_tokens) const {
  Cut cut{.num_tokens = num_tokens};
  const std::int32_t last = num_tokens > step_start_ ? num_segments() : visible_segments_;
  for (; cut.num_segments < last; ++cut.num_segments) {
    const SegmentView& s = segment(cut.num_segments);
    if (num_sinks() + s.first_row + s.num_rows > num_tokens) break;
    cut.num_rows = s.first_row + s.num_rows;
  }
  if (cut.num_segments < visible_segments_) {
    cut.num_restored = std::max<std::int64_t>(0, num_tokens - num_sinks() - cut.num_rows);
  }
  return cut;
}

void Sequence::cut(const Cut& cut, std::span<const std::uint32_t> restored,
                   PagePools& pools) noexcept {
  pools.tokens += cut.own_tokens() - own_tokens();
  commit_sealing(static_cast<std::size_t>(std::max(0, cut.num_segments - visible_segments_)),
                 pools);
  drop_segments(cut.num_segments, pools);
  length_ = cut.num_tokens;
  in_step_ = false;
  const std::int64_t pending = length_ - first_pending_token();
  if (cut.num_restored == 0 && pending > 0) {
    give_live_pages_back((first_pending_ - sink_rows_) / kPageRows, pools);
    drop_live_pages(pages_for(first_pending_ + pending), pools);
    return;
  }
  first_pending_ = sink_rows_;
  drop_live_pages(sink_rows_ / kPageRows, pools);
  live_pages_.insert(live_pages_.end(), restored.begin(), restored.end());
}

void Sequence::drop_live_pages(std::int64_t num_kept, PagePools& pools) {
  while (static_cast<std::int64_t>(live_pages_.size()) > num_kept) {
    pools.live.give_back(live_pages_.back());
    live_pages_.pop_back();
  }
}

void Sequence::drop_segments(int num_kept, PagePools& pools) {
  while (num_segments() > num_kept) {
    const SegmentView& last = segments_.back();
    if (num_segments() == visible_segments_) {
      num_stored_ -= last.num_rows;
      visible_blocks_ -= last.num_blocks;
      --visible_segments_;
    }
    if (pools.records.give_back(last.record)) pools.tokens -= last.num_rows;
    for (; blocks_.size() > static_cast<std::size_t>(last.first_block); blocks_.pop_back()) {
      pools.blocks.give_back(blocks_.back());
    }
    segments_.pop_back();
  }
  for (; static_cast<std::int64_t>(row_pages_.size()) > pages_for(segment_rows());
       row_pages_.pop_back()) {
    pools.give_row_page_back(row_pages_.back());
  }
}

}  // namespace clusterkv
