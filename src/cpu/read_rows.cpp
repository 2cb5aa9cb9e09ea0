// SPDX-License-Identifier: Apache-2.0
#include "src/cpu/read_rows.hpp"

#include <algorithm>

#include "kernels/recall/recall.hpp"

namespace clusterkv::cpu {
namespace {

class RowReader {
 public:
  RowReader(const RowSource& source, const RowRange& range, const Sequence& sequence,
            const TensorView& key, const TensorView& value)
      : source_(source), range_(range), sequence_(sequence), key_(key), value_(value) {}

  void run() const {
    const SequenceView view = sequence_.view();
    for (int i = 0; i < view.num_segments; ++i) {
      if (is_wanted(view.segments[i])) {
        fetch_segment(source_, view.segments[i], view.row_pages, Access::kRead);
      }
    }
    const std::int64_t pending = sequence_.first_pending_token();
    for (std::int64_t token = range_.first; token < range_.last; ++token) {
      if (token < sequence_.num_sinks() || token >= pending) read_live(token);
    }
    for (int i = 0; i < view.num_segments; ++i) {
      if (is_wanted(view.segments[i])) read_segment(view, view.segments[i]);
    }
  }

 private:
  [[nodiscard]] bool is_wanted(const SegmentView& segment) const {
    const std::int64_t first = sequence_.num_sinks() + segment.first_row;
    return first < range_.last && first + segment.num_rows > range_.first;
  }

  void read_live(std::int64_t token) const {
    const std::uint32_t row = paged_row(sequence_.live_pages(), sequence_.live_row(token));
    for (int head = 0; head < source_.num_kv_heads; ++head) {
      recall::cpu().read_row({source_.live, key_, value_}, head, row, token - range_.first);
    }
  }

  void read_segment(const SequenceView& view, const SegmentView& segment) const {
    for (int head = 0; head < source_.num_kv_heads; ++head) {
      for_each_stored_row(
          source_, segment, view.row_pages, head, range_.first, range_.last,
          [&](std::uint32_t row, std::int64_t token) {
            recall::cpu().read_row({source_.stored, key_, value_}, head, row, token - range_.first);
          });
    }
  }

  const RowSource& source_;
  const RowRange& range_;
  const Sequence& sequence_;
  const TensorView& key_;
  const TensorView& value_;
};

}  // namespace

void fetch_segment(const RowSource& source, const SegmentView& segment,
                   const std::uint32_t* row_pages, Access access) {
  for (int head = 0; head < source.num_kv_heads; ++head) {
    for_each_page_run(
        row_pages, segment.first_row, segment.first_row + segment.num_rows,
        [&](std::uint32_t row, std::int64_t count) { source.fetch(head, row, count, access); });
  }
}

void read_rows(const RowSource& source, const RowRange& range, const Sequence& sequence,
               const TensorView& key, const TensorView& value) {
  RowReader(source, range, sequence, key, value).run();
}

}  // namespace clusterkv::cpu
