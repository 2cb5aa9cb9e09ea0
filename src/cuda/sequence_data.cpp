// SPDX-License-Identifier: Apache-2.0
//
// CudaStages: what goes in and out of the stores besides a step: forks, cuts, saved sequences, rows that are
// read.
#include <algorithm>
#include <vector>

#include "src/cuda/stages.hpp"
#include "src/saved_parts.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {

namespace ops = clusterkv::CLUSTERKV_DEVICE;

// ----------------------------------------------------------------------------- fork, truncate

void CudaStages::copy_pages(std::span<const PageCopy> rows, std::span<const PageCopy> live,
                            const Stream& stream) {
  sealed_.hold(stream.handle);  // what is copied was stored on the side stream
  const int planes = model_.num_layers * model_.num_kv_heads;
  for (const PageCopy& copy : live) {
    copy_page(live_.layer(0), nullptr, 0, {copy.from, copy.to, copy.num_rows}, planes,
              stream.handle);
  }
  for (const PageCopy& copy : rows) {
    for_each_layer_kind([&](int first, int num_layers) {
      copy_page(stored_.layer(first), index_.positions(first), index_.positions_stride(),
                {copy.from, copy.to, copy.num_rows}, num_layers * model_.num_kv_heads,
                stream.handle);
    });
  }
}

void CudaStages::restore_rows(const RestoredRows& rows, const Stream& stream) {
  sealed_.hold(stream.handle);
  const auto pages = [](std::int64_t num_rows) {
    return static_cast<std::size_t>((num_rows + kPageRows - 1) / kPageRows);
  };
  const std::size_t from = pages(rows.segment.first_row + rows.segment.num_rows);
  auto* row_pages = reinterpret_cast<std::uint32_t*>(moved_pages_.data());
  std::uint32_t* live_pages = row_pages + from;
  copy_async(row_pages, rows.row_pages, from * sizeof(std::uint32_t), stream.handle);
  copy_async(live_pages, rows.live_pages, pages(rows.num_tokens) * sizeof(std::uint32_t),
             stream.handle);
  for_each_layer_kind([&](int first, int num_layers) {
    ops::restore_rows({.stored = stored_.layer(first),
                       .live = live_.layer(first),
                       .positions = index_.positions(first),
                       .positions_stride = index_.positions_stride(),
                       .row_pages = row_pages,
                       .live_pages = live_pages,
                       .first_row = rows.segment.first_row,
                       .num_rows = rows.segment.num_rows,
                       .first_token = rows.first_token,
                       .num_tokens = rows.num_tokens},
                      num_layers * model_.num_kv_heads, stream.handle);
  });
  wait_for(stream.handle);  // the tables are the caller's
}

// -------------------------------------------------------------------------------- save, load

namespace {

/// Bytes that are brought from or to the device together.
constexpr std::size_t kStagingBytes = std::size_t{4} << 20;

/// Shows parts in device memory to a visitor that reads or writes them: in pinned memory, many at a time.
class StagedParts final : public PartVisitor {
 public:
  StagedParts(PartVisitor& visitor, MemoryResource& memory, void* stream)
      : visitor_(visitor),
        staging_(memory, kStagingBytes, "staging of saved sequences", {Device::kPinned}),
        stream_(stream) {}
  ~StagedParts() override {
    try {
      wait_for(stream_);  // copies from here may be under way
    } catch (const CudaError&) {
      // The device is lost: nothing is under way.
    }
  }

  [[nodiscard]] bool fills_parts() const override { return visitor_.fills_parts(); }

  void visit(std::span<std::byte> part) override {
    while (!part.empty()) {
      if (used_ == kStagingBytes) flush();
      const std::size_t bytes = std::min(part.size(), kStagingBytes - used_);
      std::byte* staged = staging_.data() + used_;
      if (fills_parts()) {
        visitor_.visit({staged, bytes});
        copy_async(part.data(), staged, bytes, stream_);
      } else {
        copy_async(staged, part.data(), bytes, stream_);
        waiting_.push_back(bytes);
      }
      used_ += bytes;
      part = part.subspan(bytes);
    }
  }

  void end_block() override { fills_parts() ? visitor_.end_block() : waiting_.push_back(kEnd); }

  /// What was visited so far is with the visitor, or on the device.
  void flush() {
    wait_for(stream_);
    std::byte* staged = staging_.data();
    for (const std::size_t bytes : waiting_) {
      if (bytes == kEnd) {
        visitor_.end_block();
      } else {
        visitor_.visit({staged, bytes});
        staged += bytes;
      }
    }
    waiting_.clear();
    used_ = 0;
  }

 private:
  static constexpr std::size_t kEnd = 0;

  PartVisitor& visitor_;
  runtime::Buffer staging_;
  void* stream_;
  std::size_t used_ = 0;
  std::vector<std::size_t> waiting_;  ///< bytes of a part, or kEnd
};

}  // namespace

SavedStores CudaStages::saved_stores() const {
  return {config_, live_, index_, [this](int layer) { return stored_.layer(layer); }, {}};
}

void CudaStages::visit_parts(const Sequence& sequence, PartVisitor& visitor, const Stream& stream) {
  sealed_.hold(stream.handle);          // its pages may be those of a segment that is being written
  prefetches_.hold_all(stream.handle);  // and pages that are filled may be read
  StagedParts staged(visitor, memory_, stream.handle);
  clusterkv::visit_parts(saved_stores(), sequence, staged);
  staged.flush();
}

void CudaStages::check_parts(const Sequence& sequence, const Stream& stream) const {
  const TableReader reader{
      .copy = [&](void* to, const void* from,
                  std::size_t bytes) { copy_async(to, from, bytes, stream.handle); },
      .wait = [&] { wait_for(stream.handle); }};
  clusterkv::check_parts(saved_stores(), sequence, reader);
}

// -------------------------------------------------------------------------------------- read

void CudaStages::read_rows(const RowRange& range, const Sequence& sequence, const TensorView& key,
                           const TensorView& value, const Stream& stream) const {
  const SequenceTables tables = sequence.tables();
  const SequenceView view = sequence.view();
  // Logical rows [first, last) of a page table, a page at a time.
  const auto read = [&](const RowStore& store, std::span<const std::uint32_t> pages,
                        std::int64_t first, std::int64_t last, RowRun run) {
    for (std::int64_t row = first; row < last;) {
      const std::int64_t end = std::min(last, (row / kPageRows + 1) * kPageRows);
      run.first_row = paged_row(pages.data(), row);
      run.num_rows = static_cast<int>(end - row);
      ops::read_rows({store, key, value}, run, model_.num_kv_heads, stream.handle);
      run.first_token += end - row;
      row = end;
    }
  };
  RowRun run{.begin = range.first, .end = range.last};
  const RowStore live = live_.layer(range.layer);
  const std::int64_t sinks = std::min<std::int64_t>(view.num_sinks, range.last);
  if (range.first < sinks) read(live, tables.live_pages, 0, view.num_sinks, run);
  const std::int64_t pending = sequence.first_pending_token();
  if (range.last > pending) {
    run.first_token = pending;
    read(live, tables.live_pages, view.first_pending, view.first_pending + view.num_pending, run);
  }
  run.positions = index_.positions(range.layer);
  run.positions_stride = index_.positions_stride();
  for (int i = 0; i < view.num_segments; ++i) {
    const SegmentView& segment = view.segments[i];
    const std::int64_t first = view.num_sinks + segment.first_row;
    if (first >= range.last || first + segment.num_rows <= range.first) continue;
    read(stored_.layer(range.layer), tables.row_pages, segment.first_row,
         segment.first_row + segment.num_rows, run);
  }
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
