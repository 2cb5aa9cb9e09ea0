// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <set>

#include "tests/index/fixture.hpp"

namespace clusterkv::index {
namespace {

constexpr int kHeads = 2;

/// A live store of random rows, a row store with room, positions all unset.
struct Rows {
  Rows(const OpCase& op, int num_live, int num_stored)
      : random(31),
        live(op.dtype, op.dims(), kHeads, kFirstLive + num_live, random),
        stored(op.dtype, op.dims(), kHeads, num_stored, random),
        plane(stored.num_pages() * kPageRows + 5),
        positions(static_cast<std::size_t>(kHeads * plane)) {
    live.fill(random, kFirstLive, num_live);
  }
  /// Stores `order` of the live rows from `first` on at logical rows from `first_row` on.
  void store(int kv_head, std::int64_t first, std::int64_t first_row, int count,
             const std::int32_t* order, Backend backend, bool positions_only = false) {
    SegmentView segment{};
    segment.num_rows = count;
    segment.first_row = first_row;
    RowStore to = stored.view();
    if (positions_only) to.base = nullptr;
    ops_of(backend).store_segment(
        {live.view(), to, positions.data(), plane, order},
        {live.pages(), kFirstLive + first, kFirstToken + first, count, kv_head},
        {segment, nullptr, stored.pages()});
  }
  std::uint32_t position(int kv_head, std::int64_t row) {
    return positions[static_cast<std::size_t>(kv_head * plane + stored.row_of(row))];
  }
  bool same_row(int kv_head, std::int64_t live_row, std::int64_t row) {
    const std::size_t bytes = stored.view().row_bytes - testing::TestRows::kRowPadding;
    return std::memcmp(live.bytes(kv_head, live_row), stored.bytes(kv_head, row), bytes) == 0;
  }

  Random random;
  testing::TestRows live, stored;
  std::int64_t plane;
  testing::Guarded<std::uint32_t> positions;
};

class StoreSegment : public ::testing::TestWithParam<OpCase> {
 protected:
  static Backend backend() { return GetParam().backend; }
};

TEST_P(StoreSegment, MovesRowsInTheOrderGivenAndNotesTheirTokens) {
  Rows rows(GetParam(), 300, 700);
  const auto order = testing::permutation(rows.random, 300);
  const auto before = rows.stored.snapshot();
  rows.store(1, 0, 333, 300, order.data(), backend());
  std::set<std::pair<int, std::int64_t>> written;
  for (int i = 0; i < 300; ++i) {
    const int token = order[static_cast<std::size_t>(i)];
    EXPECT_TRUE(rows.same_row(1, kFirstLive + token, 333 + i)) << i;
    EXPECT_EQ(rows.position(1, 333 + i), kFirstToken + token);
    written.insert({1, 333 + i});
  }
  EXPECT_TRUE(rows.stored.same_but(before, written));
  EXPECT_TRUE(rows.positions.guards_intact());
  const auto all = rows.positions.copy();
  EXPECT_EQ(std::count(all.begin(), all.end(), 0xFFFFFFFFU),
            static_cast<std::ptrdiff_t>(all.size()) - 300);
}

TEST_P(StoreSegment, NullOrderIsTokenOrder) {
  Rows rows(GetParam(), 40, 64);
  rows.store(0, 0, 3, 40, nullptr, backend());
  for (int i = 0; i < 40; ++i) {
    EXPECT_TRUE(rows.same_row(0, kFirstLive + i, 3 + i));
    EXPECT_EQ(rows.position(0, 3 + i), kFirstToken + i);
  }
}

TEST_P(StoreSegment, WithoutAStoreOnlyPositionsAreWritten) {
  Rows rows(GetParam(), 40, 64);
  const auto before = rows.stored.snapshot();
  const auto order = testing::permutation(rows.random, 40);
  rows.store(0, 0, 0, 40, order.data(), backend(), true);
  EXPECT_TRUE(rows.stored.same_but(before, {}));
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(rows.position(0, i), kFirstToken + order[static_cast<std::size_t>(i)]);
  }
}

TEST_P(StoreSegment, NineHundredSixtyAppendsKeepOlderRowsByteIdentical) {
  constexpr int kWindow = 320;
  Rows rows(GetParam(), 960, 16 + 960);
  const std::int64_t first_row = 16;
  for (int window = 0; window < 3; ++window) {
    const auto before = rows.stored.snapshot();
    const auto order = testing::permutation(rows.random, kWindow);
    std::set<std::pair<int, std::int64_t>> written;
    const std::int64_t first = std::int64_t{window} * kWindow;
    for (int head = 0; head < kHeads; ++head) {
      rows.store(head, first, first_row + first, kWindow, order.data(), backend());
      for (int i = 0; i < kWindow; ++i) written.insert({head, first_row + first + i});
    }
    EXPECT_TRUE(rows.stored.same_but(before, written)) << "window " << window;
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, StoreSegment, ::testing::ValuesIn(testing::value_op_cases()),
                         [](const auto& c) { return testing::name_of(c.param); });

}  // namespace
}  // namespace clusterkv::index
