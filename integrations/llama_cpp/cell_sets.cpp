// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/cell_sets.hpp"

#include <algorithm>
#include <iterator>

namespace clusterkv::llama_cpp {
namespace {

std::vector<bool> to_flags(const MaskRow& row) {
  std::vector<bool> seen(row.cells.empty() ? 0 : static_cast<std::size_t>(row.cells.back()) + 1);
  for (const int cell : row.cells) seen[static_cast<std::size_t>(cell)] = true;
  return seen;
}

bool sees(const std::vector<bool>& seen, int cell) {
  return static_cast<std::size_t>(cell) < seen.size() && seen[static_cast<std::size_t>(cell)];
}

/// If `row` is the next token of the sequence whose newest row is `last`, adds it to the member.
bool join(Member& member, const MaskRow& last, const MaskRow& row) {
  if (last.stream != row.stream || last.cells.size() >= row.cells.size()) return false;
  if (!std::includes(row.cells.begin(), row.cells.end(), last.cells.begin(), last.cells.end())) {
    return false;
  }
  const std::size_t before = member.added.size();
  std::set_difference(row.cells.begin(), row.cells.end(), last.cells.begin(), last.cells.end(),
                      std::back_inserter(member.added));
  member.is_block = member.is_block && member.added.size() == before + 1;
  return true;
}

}  // namespace

struct CellSets::Candidate {
  CellSet* set = nullptr;
  std::size_t kept = 0;
  bool is_stale = false;    ///< the first cell not kept is seen, but holds something else
  bool front_left = false;  ///< the first cells are not seen, later ones are as they were
};

CellSets::Candidate CellSets::best_set(const MaskRow& row, const std::vector<bool>& seen,
                                       std::span<const Member> members, const CellPrint& print) {
  Candidate best;
  for (CellSet& set : sets_) {
    if (set.stream != row.stream || set.cells.empty()) continue;
    const std::size_t size = set.cells.size();
    const auto is_same = [&](std::size_t i) {
      return print(set.stream, set.cells[i]) == set.prints[i];
    };
    Candidate candidate{&set};
    while (candidate.kept < size && sees(seen, set.cells[candidate.kept]) &&
           is_same(candidate.kept)) {
      ++candidate.kept;
    }
    if (candidate.kept < size) candidate.is_stale = sees(seen, set.cells[candidate.kept]);
    if (candidate.kept == 0) {
      std::size_t first = 0;
      while (first < size && !sees(seen, set.cells[first])) ++first;
      if (first > 0 && first < size && is_same(first)) best.front_left = true;
      continue;
    }
    // Of two that fit equally, one that is continued whole and is not taken yet.
    const auto taken =
        std::any_of(members.begin(), members.end(), [&](const Member& m) { return m.set == &set; });
    const bool better = candidate.kept > best.kept ||
                        (candidate.kept == best.kept && candidate.kept == size && !taken);
    if (better) best = {&set, candidate.kept, candidate.is_stale, best.front_left};
  }
  if (best.set != nullptr) best.front_left = false;
  return best;
}

Member CellSets::first_row(const MaskRow& row, std::span<const Member> members,
                           const CellPrint& print) {
  const std::vector<bool> seen = to_flags(row);
  const Candidate best = best_set(row, seen, members, print);
  Member member;
  member.front_left = best.front_left;
  std::vector<bool> known(seen.size());
  if (best.set != nullptr) {
    const auto taken = std::any_of(members.begin(), members.end(),
                                   [&](const Member& m) { return m.set == best.set; });
    // What another sequence may still see must stay: then a fork. What was overwritten nobody sees.
    const bool is_whole = best.kept == best.set->cells.size();
    member.origin = !taken && (is_whole || best.is_stale) ? Member::Origin::kContinued
                                                          : Member::Origin::kForked;
    member.set = best.set;
    member.kept = best.kept;
    best.set->last_step = step_;
    for (std::size_t i = 0; i < best.kept; ++i) {
      known[static_cast<std::size_t>(best.set->cells[i])] = true;
    }
  }
  for (const int cell : row.cells) {
    if (!known[static_cast<std::size_t>(cell)]) member.added.push_back(cell);
  }
  // The last token of a set, computed once more: a step needs a new token.
  if (member.added.empty()) member.added.push_back(best.set->cells[--member.kept]);
  return member;
}

std::vector<Member> CellSets::match(std::span<const MaskRow> rows, const CellPrint& print) {
  ++step_;
  std::vector<Member> members;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (rows[r].cells.empty()) continue;
    const auto owner = std::find_if(members.begin(), members.end(), [&](Member& member) {
      return join(member, rows[static_cast<std::size_t>(member.rows.back())], rows[r]);
    });
    if (owner != members.end()) {
      owner->rows.push_back(static_cast<int>(r));
      continue;
    }
    members.push_back(first_row(rows[r], members, print));
    members.back().rows.push_back(static_cast<int>(r));
  }
  return members;
}

CellSet& CellSets::add(SequenceId id, int stream) {
  sets_.push_back({.id = id, .stream = stream, .last_step = step_});
  return sets_.back();
}

void CellSets::cut(CellSet& set, std::size_t kept) {
  set.cells.resize(std::min(kept, set.cells.size()));
  set.prints.resize(set.cells.size());
  set.cached = std::min(set.cached, set.cells.size());
}

void CellSets::append(CellSet& set, std::span<const int> cells, const CellPrint& print) {
  for (const int cell : cells) {
    set.cells.push_back(cell);
    set.prints.push_back(print(set.stream, cell));
  }
}

void CellSets::remove(const CellSet& set) {
  sets_.remove_if([&](const CellSet& other) { return &other == &set; });
}

std::vector<SequenceId> CellSets::drop_overwritten(const CellPrint& print) {
  std::vector<SequenceId> dropped;
  sets_.remove_if([&](const CellSet& set) {
    const bool is_gone = set.cells.empty() || print(set.stream, set.cells[0]) != set.prints[0];
    if (is_gone) dropped.push_back(set.id);
    return is_gone;
  });
  return dropped;
}

CellSet* CellSets::oldest() {
  const auto found = std::min_element(
      sets_.begin(), sets_.end(),
      [](const CellSet& a, const CellSet& b) { return a.last_step < b.last_step; });
  return found == sets_.end() || found->last_step == step_ ? nullptr : &*found;
}

}  // namespace clusterkv::llama_cpp
