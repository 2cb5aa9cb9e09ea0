// SPDX-License-Identifier: Apache-2.0
//
// Sequences as bytes: what may be saved, and what must hold before pages are taken. The format is
// saved.hpp's.
#include <algorithm>
#include <utility>

#include "src/core.hpp"
#include "src/runtime/check.hpp"

namespace clusterkv {

using runtime::fail;

void Core::save(SequenceId id, const WriteFn& write, const Stream& stream) const {
  stages_->check_stream(stream);
  const Sequence& sequence = find(id);
  if (!write) fail<ValueError>("write: empty, expected a function");
  if (sequence.missing_layer() >= 0) {
    fail<StepError>("id: sequence {} lacks append() of layer {} in its last step", number(id),
                    sequence.missing_layer());
  }
  BlockWriter writer(write);
  const Values values = sequence.length() == 0 ? Values::kUnknown : values_;
  write_head(writer, resolved_, rows_, {sequence.length(), sequence.num_segments(), values});
  write_segments(writer, sequence);
  stages_->visit_parts(sequence, writer, stream);
}

SequenceId Core::load(const ReadFn& read, const Stream& stream) {
  stages_->check_stream(stream);
  if (!read) fail<ValueError>("read: empty, expected a function");
  check_room("load");
  BlockReader reader(read);
  const SavedHead head = read_head(reader, resolved_, rows_);
  if (values_ != Values::kUnknown && head.values != Values::kUnknown && head.values != values_) {
    fail<FormatError>("read: saved {} values, expected as in the appends before",
                      head.values == Values::kGiven ? "with" : "without");
  }
  check_load_fits(head.length);
  const std::vector<SegmentSize> segments = read_segments(reader, resolved_, head);
  check_load_fits(head, segments);
  const SequenceId id{next_id_};
  auto sequence = std::make_unique<Sequence>(id, resolved_, capacity_);
  Sequence& loaded = *sequence;
  loaded.take_over(head.length, segments, pools_);
  try {
    stages_->visit_parts(loaded, reader, stream);
    stages_->check_parts(loaded, stream);
    sequences_.emplace(id, std::move(sequence));
  } catch (...) {
    loaded.release(pools_);
    throw;
  }
  ++next_id_;
  if (head.values != Values::kUnknown) values_ = head.values;
  return id;
}

void Core::check_load_fits(std::int64_t length) const {
  if (length <= resolved_.max_tokens - pools_.tokens) return;
  fail<CapacityError>("read: {} tokens beside {} live ones, expected at most max_tokens {}", length,
                      pools_.tokens, resolved_.max_tokens);
}

void Core::check_load_fits(const SavedHead& head, std::span<const SegmentSize> segments) const {
  std::int64_t rows = 0;
  std::int64_t blocks = 0;
  for (const SegmentSize& size : segments) {
    rows += size.num_rows;
    blocks += size.num_blocks;
  }
  const std::int64_t pending = head.length - resolved_.cluster.sink_tokens - rows;
  const std::int64_t live = capacity_.sink_pages + pages_for(std::max<std::int64_t>(0, pending));
  if (live > pools_.live.num_free()) {
    fail<CapacityError>(
        "read: {} pages of {} pending tokens, expected at most {} "
        "(store.live_tokens)",
        live, kPageRows, pools_.live.num_free());
  }
  // Sizes that plan() makes always fit; these came from outside.
  if (pages_for(rows) <= pools_.rows.num_free() && blocks <= pools_.blocks.num_free() &&
      static_cast<std::int64_t>(segments.size()) <= pools_.records.num_free()) {
    return;
  }
  fail<CapacityError>("read: {} segments of {} tokens in {} blocks, expected as many as fit",
                      segments.size(), rows, blocks);
}

}  // namespace clusterkv
