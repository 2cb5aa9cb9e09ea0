// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "src/runtime/check.hpp"

namespace clusterkv::runtime {

/// Numbers of equal pages: takes the lowest free one, so that a run of takes is mostly contiguous. A
/// page has as many owners as share it, and is free when the last has given it back.
class PagePool {
 public:
  explicit PagePool(std::int64_t num_pages)
      : num_pages_(num_pages),
        num_free_(num_pages),
        free_(static_cast<std::size_t>((num_pages + 63) / 64), ~std::uint64_t{0}),
        owners_(static_cast<std::size_t>(num_pages), 0) {}

  [[nodiscard]] std::int64_t num_pages() const { return num_pages_; }
  [[nodiscard]] std::int64_t num_free() const { return num_free_; }
  [[nodiscard]] std::int64_t num_held() const { return num_pages_ - num_free_; }
  [[nodiscard]] std::int64_t num_held_from(std::int64_t page) const {
    return std::count_if(owners_.begin() + page, owners_.end(),
                         [](auto owners) { return owners > 0; });
  }
  [[nodiscard]] bool is_shared(std::uint32_t page) const { return owners_[page] > 1; }

  /// \pre num_free() > 0
  std::uint32_t take() {
    while (free_[first_word_] == 0) ++first_word_;
    const int bit = std::countr_zero(free_[first_word_]);
    free_[first_word_] &= ~(std::uint64_t{1} << bit);
    --num_free_;
    const std::size_t page = first_word_ * 64 + static_cast<std::size_t>(bit);
    owners_[page] = 1;
    return static_cast<std::uint32_t>(page);
  }

  /// visit(page) for the pages that the next `count` takes give.
  template <class Visit>
  void for_each_free(std::int64_t count, const Visit& visit) const {
    for (std::size_t word = first_word_; count > 0 && word < free_.size(); ++word) {
      for (std::uint64_t bits = free_[word]; bits != 0 && count > 0; bits &= bits - 1, --count) {
        const std::size_t page = word * 64 + static_cast<std::size_t>(std::countr_zero(bits));
        if (page < owners_.size()) visit(static_cast<std::uint32_t>(page));
      }
    }
  }

  /// One owner more.
  void share(std::uint32_t page) noexcept { ++owners_[page]; }

  /// One owner less. Whether that was the last, so that the page is free.
  bool give_back(std::uint32_t page) noexcept {
    if (--owners_[page] > 0) return false;
    const std::size_t word = page / 64;
    free_[word] |= std::uint64_t{1} << (page % 64);
    first_word_ = std::min(first_word_, word);
    ++num_free_;
    return true;
  }

 private:
  std::int64_t num_pages_;
  std::int64_t num_free_;
  std::size_t first_word_ = 0;       ///< no word before it has a free page
  std::vector<std::uint64_t> free_;  ///< one bit a page; bits past num_pages_ are never reached
  std::vector<std::uint32_t> owners_;
};

}  // namespace clusterkv::runtime
