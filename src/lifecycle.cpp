// SPDX-License-Identifier: Apache-2.0
//
// Sequences come, fork, are cut and go.
#include <algorithm>
#include <utility>

#include "src/core.hpp"
#include "src/runtime/check.hpp"

namespace clusterkv {

using runtime::fail;

/// Live pages that go back unless a sequence has them.
class Core::TakenPages {
 public:
  TakenPages(PagePool& pool, std::int64_t count) : pool_(&pool) {
    pages_.reserve(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) pages_.push_back(pool.take());
  }
  ~TakenPages() {
    for (const std::uint32_t page : pages_) pool_->give_back(page);
  }
  TakenPages(TakenPages&& other) noexcept
      : pool_(other.pool_), pages_(std::exchange(other.pages_, {})) {}
  TakenPages(const TakenPages&) = delete;
  TakenPages& operator=(const TakenPages&) = delete;
  TakenPages& operator=(TakenPages&&) = delete;

  [[nodiscard]] const std::vector<std::uint32_t>& get() const { return pages_; }
  void release() noexcept { pages_.clear(); }

 private:
  PagePool* pool_;
  std::vector<std::uint32_t> pages_;
};

SequenceId Core::add_sequence() {
  check_room("add_sequence");
  const SequenceId id{next_id_};
  sequences_.emplace(id, std::make_unique<Sequence>(id, resolved_, capacity_));
  ++next_id_;
  return id;
}

SequenceId Core::fork(SequenceId parent, std::int64_t num_tokens, const Stream& stream) {
  stages_->check_stream(stream);
  check_not_capturing(stream);
  const Sequence& from = find(parent, "parent");
  const Cut cut = checked_cut(from, num_tokens == -1 ? from.length() : num_tokens);
  check_room("fork");
  check_cut_fits(from, cut, cut.own_tokens());
  TakenPages restored = restore(from, cut, stream);
  const SequenceId id{next_id_};
  const auto child =
      sequences_.emplace(id, std::make_unique<Sequence>(id, resolved_, capacity_)).first;
  ++next_id_;
  child->second->share(from, pools_);
  child->second->cut(cut, restored.get(), pools_);
  restored.release();
  return id;
}

void Core::truncate(SequenceId id, std::int64_t num_tokens, const Stream& stream) {
  stages_->check_stream(stream);
  check_not_capturing(stream);
  const Sequence& from = find(id);
  const Cut cut = checked_cut(from, num_tokens);
  std::int64_t more = cut.own_tokens() - from.own_tokens();
  for (int i = cut.num_segments; i < from.num_segments(); ++i) {
    if (!pools_.records.is_shared(from.segment(i).record)) more -= from.segment(i).num_rows;
  }
  check_cut_fits(from, cut, more);
  TakenPages restored = restore(from, cut, stream);
  find_or_null(id)->cut(cut, restored.get(), pools_);
  restored.release();
}

void Core::remove(SequenceId id) {
  Sequence* sequence = find_or_null(id);
  if (sequence == nullptr) fail<UnknownSequence>("id: sequence {} is not live", number(id));
  sequence->release(pools_);
  sequences_.erase(id);
}

Sequence* Core::find_or_null(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? nullptr : found->second.get();
}

const Sequence& Core::find(SequenceId id, const char* argument) const {
  const Sequence* sequence = find_or_null(id);
  if (sequence == nullptr) {
    fail<UnknownSequence>("{}: sequence {} is not live", argument, number(id));
  }
  return *sequence;
}

void Core::check_room(const char* call) const {
  if (static_cast<int>(sequences_.size()) < resolved_.max_sequences) return;
  fail<CapacityError>("{}: {} sequences are live, expected fewer than max_sequences {}", call,
                      sequences_.size(), resolved_.max_sequences);
}

Cut Core::checked_cut(const Sequence& sequence, std::int64_t num_tokens) const {
  if (num_tokens < 0 || num_tokens > sequence.length()) {
    fail<ShapeError>("num_tokens: {}, expected 0 .. {}, the length of sequence {}", num_tokens,
                     sequence.length(), number(sequence.id()));
  }
  const int missing = sequence.missing_layer();
  if (missing >= 0 && num_tokens > sequence.step_start()) {
    fail<StepError>(
        "num_tokens: {}, expected at most {} or append() of layer {} in the last step of sequence "
        "{}",
        num_tokens, sequence.step_start(), missing, number(sequence.id()));
  }
  const Cut cut = sequence.decide_cut(num_tokens);
  if (cut.num_restored > 0 && rows_ == Rows::kElsewhere) {
    const std::int64_t first = num_tokens - cut.num_restored;
    fail<ShapeError>(
        "num_tokens: {} is inside a segment, whose rows are the engine's, expected {} or {}, or "
        "inside no segment",
        num_tokens, first, first + sequence.segment(cut.num_segments).num_rows);
  }
  return cut;
}

void Core::check_cut_fits(const Sequence& sequence, const Cut& cut,
                          std::int64_t more_tokens) const {
  if (more_tokens > resolved_.max_tokens - pools_.tokens) {
    fail<CapacityError>(
        "num_tokens: {} of sequence {} wants {} tokens beside {} live ones, expected at most "
        "max_tokens {}",
        cut.num_tokens, number(sequence.id()), more_tokens, pools_.tokens, resolved_.max_tokens);
  }
  const std::int64_t pages = pages_for(cut.num_restored);
  if (pages > pools_.live.num_free()) {
    fail<CapacityError>(
        "num_tokens: {} of sequence {} wants {} more pages of {} pending tokens, expected at most "
        "{} (store.live_tokens)",
        cut.num_tokens, number(sequence.id()), pages, kPageRows, pools_.live.num_free());
  }
}

/// The tokens of a cut segment, in pages of their own. Changes nothing else.
Core::TakenPages Core::restore(const Sequence& sequence, const Cut& cut, const Stream& stream) {
  TakenPages pages(pools_.live, pages_for(cut.num_restored));
  if (cut.num_restored > 0) {
    stages_->restore_rows({.segment = sequence.segment(cut.num_segments),
                           .row_pages = sequence.row_pages().data(),
                           .first_token = cut.num_tokens - cut.num_restored,
                           .num_tokens = cut.num_restored,
                           .live_pages = pages.get().data()},
                          stream);
  }
  return pages;
}

}  // namespace clusterkv
