// SPDX-License-Identifier: Apache-2.0
//
// The bookkeeping of one sequence: lengths, page tables, segments. No rows, no arithmetic.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "clusterkv/config.hpp"
#include "clusterkv/step.hpp"
#include "kernels/common/views.hpp"
#include "src/page_pools.hpp"

namespace clusterkv {

/// Clusters of a sealed segment, before empty ones are dropped.
int segment_clusters(const ClusterConfig& config, int num_tokens, Phase phase);

/// The page tables of a sequence, with segments that are being sealed.
struct SequenceTables {
  std::span<const std::uint32_t> row_pages;
  std::span<const std::uint32_t> live_pages;
  std::span<const std::uint32_t> blocks;
  std::span<const SegmentView> segments;
};

/// Pages that hold so many rows.
std::int64_t pages_for(std::int64_t rows);

/// A segment, without where it lies.
struct SegmentSize {
  std::int32_t num_rows;
  std::int32_t num_blocks;
};

/// What remains of a sequence when its later tokens go.
struct Cut {
  std::int64_t num_tokens;
  std::int32_t num_segments = 0;  ///< those that stay
  std::int64_t num_rows = 0;      ///< of them
  /// First tokens of the first segment that goes, to become pending again; 0 if they still are.
  std::int64_t num_restored = 0;

  [[nodiscard]] std::int64_t own_tokens() const { return num_tokens - num_rows; }
};

/// Tokens in order: sinks, stored (in segments), pending.
///
/// A segment is sealed in two steps. begin_step() takes its pages and lists it in `sealing`; the
/// layers fill it while its tokens are still pending. The next begin_step() of the sequence makes it
/// visible and frees the live pages of its tokens.
///
/// Forks share pages, blocks and records. A shared page is never written: begin_step() takes another
/// one and lists what is to be copied.
class Sequence {
 public:
  /// A segment that this step's append() calls fill.
  struct Sealing {
    int segment;                  ///< position in segments()
    int num_clusters;             ///< before empty ones are dropped
    std::int64_t first_live_row;  ///< of its first token
    std::int64_t first_token;     ///< position in the sequence
  };

  /// Reserves page tables for the longest sequence the cache may hold.
  Sequence(SequenceId id, const CacheConfig& config, const Capacity& capacity);

  /// Notes that row `row` of the check numbered `check` names this sequence. Returns the row of the
  /// same check that did before; -1 if there was none.
  int claim(std::uint64_t check, int row);

  /// What begin_step() will do, without doing it: token counts of the segments to be sealed.
  void decide_seals(const StepRow& row, std::vector<int>& num_tokens) const;

  /// Live pages that begin_step() will give back, and then take.
  struct LivePages {
    std::int64_t given_back;
    std::int64_t freed;  ///< those given back that nobody shares
    std::int64_t taken;
    std::int64_t copied;  ///< taken too, instead of shared ones
  };
  [[nodiscard]] LivePages decide_live_pages(const StepRow& row, const PagePools& pools) const;

  /// Pages of the row store that begin_step() will take, at most, and a shared one that it will copy.
  struct RowPages {
    std::int64_t taken;
    std::optional<std::uint32_t> copied;
  };
  /// \param sizes  scratch
  [[nodiscard]] RowPages decide_row_pages(const StepRow& row, const PagePools& pools,
                                          std::vector<int>& sizes) const;

  /// Advances the length. Nothing can fail here: pools are sized for max_tokens, live pages were counted.
  void begin_step(const StepRow& row, std::uint32_t plan_number, PagePools& pools);

  /// Gives all pages back.
  void release(PagePools& pools) noexcept;

  /// What cut() to a length of `num_tokens` will leave. Segments that go beyond it go. Those of the
  /// running step go as well, if all its tokens do: the step has not been.
  /// \pre 0 <= num_tokens <= length()
  [[nodiscard]] Cut decide_cut(std::int64_t num_tokens) const;

  /// Ends the running step and drops tokens. What stays of its segments is visible at once.
  /// \param restored  live pages of the cut's restored tokens, ours from now on
  void cut(const Cut& cut, std::span<const std::uint32_t> restored, PagePools& pools) noexcept;

  /// Becomes what `parent` is, sharing its pages.
  /// \pre new
  void share(const Sequence& parent, PagePools& pools) noexcept;

  /// Becomes a sequence of so many tokens, with pages for all of it, which are the caller's to fill.
  /// \pre new; the pools have so much
  void take_over(std::int64_t length, std::span<const SegmentSize> segments,
                 PagePools& pools) noexcept;

  /// The step's view; valid until the next begin_step() or release().
  [[nodiscard]] SequenceView view() const;

  [[nodiscard]] SequenceId id() const { return id_; }
  [[nodiscard]] std::int64_t length() const { return length_; }
  [[nodiscard]] std::int64_t num_stored() const { return num_stored_; }
  [[nodiscard]] int num_sinks() const;
  [[nodiscard]] std::int64_t first_pending_token() const { return num_sinks() + num_stored_; }
  /// Of the running step; 0 without one.
  [[nodiscard]] std::uint32_t plan_number() const { return in_step_ ? plan_number_ : 0; }
  /// Length before the running step.
  [[nodiscard]] std::int64_t step_start() const { return step_start_; }
  /// Of all segments, those of the running step too.
  [[nodiscard]] std::int64_t segment_rows() const {
    return segments_.empty() ? 0 : segments_.back().first_row + segments_.back().num_rows;
  }
  /// Tokens that are in no segment.
  [[nodiscard]] std::int64_t own_tokens() const { return length_ - segment_rows(); }

  /// Number of the plan of this sequence's `steps`-th last step before the running one; 1 if there
  /// were fewer.
  [[nodiscard]] std::uint32_t past_plan(int steps) const;

  [[nodiscard]] const std::vector<Sealing>& sealing() const { return sealing_; }
  [[nodiscard]] int num_segments() const { return static_cast<int>(segments_.size()); }
  [[nodiscard]] const SegmentView& segment(int i) const {
    return segments_[static_cast<std::size_t>(i)];
  }
  [[nodiscard]] const std::uint32_t* blocks_of(const SegmentView& segment) const {
    return blocks_.data() + segment.first_block;
  }
  [[nodiscard]] const std::vector<std::uint32_t>& row_pages() const { return row_pages_; }
  [[nodiscard]] const std::uint32_t* live_pages() const { return live_pages_.data(); }

  [[nodiscard]] SequenceTables tables() const {
    return {row_pages_, live_pages_, blocks_, segments_};
  }

  /// Logical live row of a sink or pending token.
  [[nodiscard]] std::int64_t live_row(std::int64_t token) const;

  [[nodiscard]] bool was_appended(int layer) const {
    return !in_step_ || appended_[static_cast<std::size_t>(layer)] == plan_number_;
  }
  void mark_appended(int layer) { appended_[static_cast<std::size_t>(layer)] = plan_number_; }
  /// A layer of the running step that was not appended; -1 if there is none.
  [[nodiscard]] int missing_layer() const;

 private:
  static constexpr int kHistory = 64;  ///< the most retain_steps can be

  template <class Visit>
  void for_each_written_page(const StepRow& row, const Visit& visit) const;
  void commit_sealing(std::size_t count, PagePools& pools);
  void give_live_pages_back(std::int64_t count, PagePools& pools);
  void drop_live_pages(std::int64_t num_kept, PagePools& pools);
  void drop_segments(int num_kept, PagePools& pools);
  void seal_segment(int num_tokens, Phase phase, PagePools& pools);
  void add_segment(const SegmentSize& size, PagePools& pools);

  SequenceId id_;
  std::uint64_t claimed_in_ = 0;  ///< number of a check of a step's rows
  int claimed_by_ = -1;           ///< row of that check
  ClusterConfig config_;
  std::int64_t sink_rows_;  ///< live rows set aside for sinks: whole pages
  std::int64_t length_ = 0;
  std::int64_t num_stored_ = 0;     ///< of visible segments
  std::int64_t first_pending_ = 0;  ///< logical live row of the first pending token
  std::int32_t visible_segments_ = 0;
  std::int32_t visible_blocks_ = 0;
  std::uint32_t plan_number_ = 0;
  bool in_step_ = false;  ///< not before the first step, nor after cut()
  std::int64_t step_start_ = 0;
  int steps_ = 0;
  std::array<std::uint32_t, kHistory> past_plans_{};
  std::vector<std::uint32_t> row_pages_;
  std::vector<std::uint32_t> live_pages_;
  std::vector<std::uint32_t> blocks_;
  std::vector<SegmentView> segments_;
  std::vector<Sealing> sealing_;
  std::vector<int> seal_sizes_;
  std::vector<std::uint32_t> appended_;  ///< [layer] plan number of its last append
};

}  // namespace clusterkv
