// SPDX-License-Identifier: Apache-2.0
#include "src/read_rows.hpp"

#include <algorithm>

#include "kernels/recall/recall.hpp"
#include "src/runtime/check.hpp"

namespace clusterkv {

using runtime::check_tensor;
using runtime::fail;

namespace {

class RowReader {
 public:
  RowReader(const Core& core, const RowRange& range, const TensorView& key, const TensorView& value)
      : core_(core), range_(range), key_(key), value_(value), sequence_(core.find(range.id)) {}

  void run() const {
    const std::int64_t pending = sequence_.first_pending_token();
    for (std::int64_t token = range_.first; token < range_.last; ++token) {
      if (token < sequence_.num_sinks() || token >= pending) read_live(token);
    }
    const SequenceView view = sequence_.view();
    for (int i = 0; i < view.num_segments; ++i) {
      const std::int64_t first = sequence_.num_sinks() + view.segments[i].first_row;
      const std::int64_t last = first + view.segments[i].num_rows;
      if (first < range_.last && last > range_.first) read_segment(view, view.segments[i]);
    }
  }

 private:
  void read_live(std::int64_t token) const {
    const std::uint32_t row = paged_row(sequence_.live_pages(), sequence_.live_row(token));
    for (int head = 0; head < core_.settings().model.num_kv_heads; ++head) {
      recall::cpu().read_row({core_.live(range_.layer), key_, value_}, head, row,
                             token - range_.first);
    }
  }

  /// Rows of a segment are in cluster order, another one for each KV head: looks at all of them.
  void read_segment(const SequenceView& view, const SegmentView& segment) const {
    for (int head = 0; head < core_.settings().model.num_kv_heads; ++head) {
      const std::uint32_t* positions =
          core_.index().positions(range_.layer) + head * core_.index().positions_stride();
      for (int i = 0; i < segment.num_rows; ++i) {
        const std::uint32_t row = paged_row(view.row_pages, segment.first_row + i);
        const std::int64_t token = positions[row];
        if (token < range_.first || token >= range_.last) continue;
        recall::cpu().read_row({core_.stored(range_.layer), key_, value_}, head, row,
                               token - range_.first);
      }
    }
  }

  const Core& core_;
  const RowRange& range_;
  const TensorView& key_;
  const TensorView& value_;
  const Sequence& sequence_;
};

}  // namespace

void read_rows(const Core& core, const RowRange& range, const TensorView& key,
               const TensorView& value) {
  const ModelShape& m = core.settings().model;
  if (range.layer < 0 || range.layer >= m.num_layers) {
    fail<ShapeError>("layer: {}, expected 0 .. {}", range.layer, m.num_layers - 1);
  }
  const Sequence& sequence = core.find(range.id);
  if (range.first < 0 || range.first > range.last || range.last > sequence.length()) {
    fail<ShapeError>("first, last: {}, {}, expected 0 <= first <= last <= {}", range.first,
                     range.last, sequence.length());
  }
  if (sequence.plan_number() > 0 && !sequence.was_appended(range.layer)) {
    fail<StepError>("layer: {} was not appended in this step, expected append() first",
                    range.layer);
  }
  const std::int64_t tokens = range.last - range.first;
  for (const auto& [tensor, name] : {std::pair{&key, "key"}, std::pair{&value, "value"}}) {
    check_tensor(*tensor, {name,
                           {tokens, m.num_kv_heads, m.head_dim},
                           runtime::kFloatTypes,
                           runtime::LastStride::kOne});
  }
  RowReader(core, range, key, value).run();
}

}  // namespace clusterkv
