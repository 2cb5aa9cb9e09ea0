// SPDX-License-Identifier: Apache-2.0
//
// Which cells of the engine's KV cache belong to which sequence, told from attention masks alone.
// Pure bookkeeping: knows neither ggml nor the cache.
//
//   mask row ──> the set with the longest matching prefix ──> continue, cut, fork or begin a sequence
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <span>
#include <vector>

#include "clusterkv/types.hpp"

namespace clusterkv::llama_cpp {

/// What one query sees. A stream is a part of the engine's cache with cells numbered from 0.
struct MaskRow {
  int stream = 0;
  std::vector<int> cells;  ///< ascending
};

/// A few bytes of what a cell holds now. Cells are freed and filled again between steps, which no mask
/// shows.
using CellPrint = std::function<std::uint64_t(int stream, int cell)>;

/// The cells of one sequence, in the order in which its tokens were appended.
struct CellSet {
  SequenceId id = kNoSequence;
  int stream = 0;
  std::vector<int> cells;
  std::vector<std::uint64_t> prints;  ///< of the cells, when they were appended
  std::size_t cached = 0;             ///< of the cells: tokens in the cache; the others wait
  std::uint64_t last_step = 0;        ///< in which it was last seen
};

/// A sequence of the step at hand: what it keeps of a set, and what is new.
struct Member {
  enum class Origin : std::uint8_t {
    kContinued,  ///< of `set`, all or its first `kept` tokens
    kForked,     ///< a new one of the first `kept` tokens of `set`
    kNew,
  };
  Origin origin = Origin::kNew;
  CellSet* set = nullptr;  ///< null if kNew
  std::size_t kept = 0;
  std::vector<int> added;  ///< cells to be appended, in this order
  std::vector<int> rows;   ///< mask rows that attend, ascending
  /// Whether the last rows.size() of `added` are the rows' own tokens, one each: they can attend in one
  /// causal block. A single row always can.
  bool is_block = true;
  /// Its cells left at the front while later ones stayed as they were: a sliding window.
  bool front_left = false;
};

class CellSets {
 public:
  /// Says what each mask row is. Rows that see nothing belong to no member. Changes nothing but the time
  /// at which sets were last seen.
  std::vector<Member> match(std::span<const MaskRow> rows, const CellPrint& print);

  /// A new empty set, seen in this step.
  CellSet& add(SequenceId id, int stream);
  /// Drops cells of a set from `kept` on.
  static void cut(CellSet& set, std::size_t kept);
  static void append(CellSet& set, std::span<const int> cells, const CellPrint& print);
  void remove(const CellSet& set);
  /// Removes the sets that are empty or whose first cell holds something else now. Says whose they were.
  std::vector<SequenceId> drop_overwritten(const CellPrint& print);

  /// The set not seen for longest, or null if all were seen in this step.
  [[nodiscard]] CellSet* oldest();
  [[nodiscard]] std::size_t size() const noexcept { return sets_.size(); }
  [[nodiscard]] const std::list<CellSet>& all() const noexcept { return sets_; }

 private:
  struct Candidate;
  Candidate best_set(const MaskRow& row, const std::vector<bool>& seen,
                     std::span<const Member> members, const CellPrint& print);
  Member first_row(const MaskRow& row, std::span<const Member> members, const CellPrint& print);

  std::list<CellSet> sets_;  ///< a list: members point to sets while others come and go
  std::uint64_t step_ = 0;
};

}  // namespace clusterkv::llama_cpp
