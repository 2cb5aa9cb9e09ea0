// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <set>
#include <tuple>

#include "clusterkv/error.hpp"
#include "tests/attend/fixture.hpp"

namespace clusterkv::attend {
namespace {

using Param = std::tuple<OpCase, Heads, HeadGrouping>;

class AttendRows : public ::testing::TestWithParam<Param> {
 protected:
  static Attention make(std::vector<testing::SegmentShape> segments = {{20, 90}, {7, 31}}) {
    const auto& [op, heads, grouping] = GetParam();
    return Attention(shape_of(op, heads, std::move(segments)), grouping);
  }
  static void expect_all(Attention& attention, const Result& got) {
    for (int head = 0; head < attention.scene.shape.num_q_heads; ++head) {
      attention.expect(got, head, attention.row_terms(head));
    }
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Poisons every stored row that no list of its KV head names.
void poison_unselected(Attention& attention) {
  for (int kv = 0; kv < attention.scene.shape.num_kv_heads; ++kv) {
    std::set<std::int64_t> named;
    for (int head = 0; head < attention.selection_heads(); ++head) {
      if (attention.kv_head_of(head) != kv) continue;
      for (const auto& [live, row] : attention.attended(head)) {
        if (!live) named.insert(row);
      }
    }
    for (std::int64_t row = 0; row < attention.scene.num_stored; ++row) {
      if (!named.contains(row)) attention.scene.stored.poison(kv, row);
    }
  }
}

TEST_P(AttendRows, MatchesReferenceAndNeverReadsUnselectedRows) {
  Attention attention = make();
  attention.choose_some();
  poison_unselected(attention);
  for (const float softcap : kSoftcaps) {
    attention.softcap = softcap;
    const Result got = attention.run();
    expect_all(attention, got);
    for (const float mass : got.tail_mass) EXPECT_EQ(mass, 0.0F);
  }
}

TEST_P(AttendRows, SinksAndPendingAloneWhenNothingIsSelected) {
  Attention attention = make();
  poison_unselected(attention);
  expect_all(attention, attention.run());
}

TEST_P(AttendRows, NothingToAttendGivesZeroAndMinusInfinity) {
  Attention attention = make();
  attention.view().num_sinks = 0;
  attention.view().num_pending = 0;
  const Result got = attention.run();
  for (const float x : got.out) EXPECT_EQ(x, 0.0F);
  for (const float x : got.lse) EXPECT_EQ(x, -INFINITY);
}

TEST_P(AttendRows, QueryTokensAreCausal) {
  const auto& [op, heads, grouping] = GetParam();
  if (grouping == HeadGrouping::kPerQueryHead) return;
  for (const int tokens : {2, 5, 16}) {
    testing::SceneShape shape = shape_of(op, {heads.q * tokens, heads.kv}, {{20, 90}, {7, 31}});
    shape.num_pending = 17;
    Attention attention(shape, grouping, 1, {tokens, tokens + 1});
    attention.choose_some();
    attention.softcap = tokens == 5 ? kSoftcaps[1] : 0;
    expect_all(attention, attention.run());
  }
}

// 133 rows: the first tokens see none of the last piece.
TEST_P(AttendRows, QueryTokensMayMissAWholePiece) {
  const auto& [op, heads, grouping] = GetParam();
  if (grouping == HeadGrouping::kPerQueryHead) return;
  testing::SceneShape shape = shape_of(op, {heads.q * 8, heads.kv}, {{20, 90}, {7, 31}});
  shape.num_pending = 8;
  Attention attention(shape, grouping, 1, {8, 8});
  attention.all_rows = true;
  expect_all(attention, attention.run());
}

TEST_P(AttendRows, QueryTokensOfASequenceOfSinksAreCausal) {
  const auto& [op, heads, grouping] = GetParam();
  if (grouping == HeadGrouping::kPerQueryHead) return;
  testing::SceneShape shape = shape_of(op, {heads.q * 4, heads.kv}, {{7, 31}});
  shape.num_pending = 1;
  Attention attention(shape, grouping, 1, {4, 4});
  expect_all(attention, attention.run());  // of 4 sinks and 1 more the first token sees 2
}

// Zero keys weigh all rows alike, so n times the output counts how often each token was attended.
TEST_P(AttendRows, AttendsEachTokenExactlyOnce) {
  Attention attention = make();
  attention.choose_some();
  Scene& scene = attention.scene;
  const int dim = attention.value_dim();
  const Vec zero(static_cast<std::size_t>(scene.shape.op.head_dim));
  const std::size_t heads = attention.scene.clusters.size();
  std::vector<std::pair<bool, std::int64_t>> all;
  for (int i = 0; i < scene.shape.num_sinks; ++i) all.emplace_back(true, i);
  for (std::int64_t i = 0; i < scene.num_stored; ++i) all.emplace_back(false, i);
  for (int i = 0; i < scene.shape.num_pending; ++i) all.emplace_back(true, scene.first_pending + i);
  for (std::size_t first = 0; first < all.size(); first += static_cast<std::size_t>(dim)) {
    for (std::size_t i = 0; i < all.size(); ++i) {
      Vec value(static_cast<std::size_t>(dim));
      if (i >= first && i < first + value.size()) value[i - first] = 1;
      for (std::size_t kv = 0; kv < heads; ++kv) {
        (all[i].first ? scene.live : scene.stored)
            .set(static_cast<int>(kv), all[i].second, zero, value);
      }
    }
    const Result got = attention.run();
    for (int head = 0; head < scene.shape.num_q_heads; ++head) {
      const auto attended = attention.attended(attention.selection_head(head));
      const std::set<std::pair<bool, std::int64_t>> once(attended.begin(), attended.end());
      for (std::size_t d = 0; d < static_cast<std::size_t>(dim) && first + d < all.size(); ++d) {
        const float share = got.out[static_cast<std::size_t>(head * dim) + d];
        EXPECT_NEAR(share * static_cast<float>(once.size()), once.contains(all[first + d]), 1e-4);
      }
      EXPECT_NEAR(got.lse[static_cast<std::size_t>(head)], std::log(once.size()), 1e-5);
    }
  }
}

TEST_P(AttendRows, EverythingAndDenseLayersReadAllRowsWithoutLists) {
  for (const bool dense : {true, false}) {
    Attention attention = make();
    attention.choose_some();
    attention.all_rows = dense;
    attention.view().everything = !dense;
    if (!dense) {  // the list of a row that attends everything names everything
      for (int head = 0; head < attention.selection_heads(); ++head) {
        for (const auto& c :
             attention.scene.clusters[static_cast<std::size_t>(attention.kv_head_of(head))]) {
          attention.choice[static_cast<std::size_t>(head)][c.id] = c.size;
        }
      }
      attention.write_lists();
    }
    expect_all(attention, attention.run());
  }
}

TEST_P(AttendRows, HugeLogitsDoNotOverflow) {
  Attention attention = make();
  attention.choose_some();
  attention.scale = 400.0F;  // logits of +-1e4 and more
  attention.softcap = 3.0F;
  // All but a few rows weigh alike; those few have logits near 0, whose terms of 1e4 are rounded.
  const Result capped = attention.run();
  for (int head = 0; head < attention.scene.shape.num_q_heads; ++head) {
    attention.expect(capped, head, attention.row_terms(head), 2e-4);
  }
  attention.softcap = 0;
  const Result got = attention.run();
  for (int head = 0; head < attention.scene.shape.num_q_heads; ++head) {
    const auto terms = attention.row_terms(head);
    const auto want = reference::softmax(terms, attention.value_dim());
    // The logit itself is rounded: 2^-24 of 1e4, times a dot of 256.
    EXPECT_LT(testing::relative_error(got.lse[static_cast<std::size_t>(head)], want.lse), 1e-5);
    for (int d = 0; d < attention.value_dim(); ++d) {
      ASSERT_TRUE(
          std::isfinite(got.out[static_cast<std::size_t>(head * attention.value_dim() + d)]));
    }
  }
}

TEST_P(AttendRows, SameBitsOnEveryRunAndInAnyOrderOfPieces) {
  Attention attention = make({{90, 700}, {64, 600}});
  for (int head = 0; head < attention.selection_heads(); ++head) {  // nearly all: several pieces
    for (const auto& c :
         attention.scene.clusters[static_cast<std::size_t>(attention.kv_head_of(head))]) {
      if (c.id % 16 != head) attention.choice[static_cast<std::size_t>(head)][c.id] = c.size;
    }
  }
  attention.write_lists();
  ASSERT_GT(
      num_row_pieces(num_attended_rows(attention.params(), Attention::kRow, 0), kCpuPieceRows), 1);
  const Result first = attention.run();
  expect_all(attention, first);
  const Result again = attention.run(true, true, true);
  EXPECT_TRUE(same_bits(first.out, again.out));
  EXPECT_TRUE(same_bits(first.lse, again.lse));
}

TEST_P(AttendRows, PartialsAreThoseOfTheirRows) {
  Attention attention = make({{64, 1100}});
  attention.all_rows = true;
  const AttendParams p = attention.params();
  const int dim = attention.value_dim();
  for (int head = 0; head < attention.selection_heads(); ++head) {
    const std::int64_t rows = num_attended_rows(p, Attention::kRow, head);
    EXPECT_EQ(rows, 1100 + attention.scene.shape.num_sinks + attention.scene.shape.num_pending);
    const int piece = num_row_pieces(rows, kCpuPieceRows) - 1;  // the one with a remainder
    ops_of(attention.scene.shape.op.backend).attend_rows(p, Attention::kRow, head, piece);
    for (int q_head = 0; q_head < attention.scene.shape.num_q_heads; ++q_head) {
      if (attention.selection_head(q_head) != head) continue;
      const auto first = static_cast<std::size_t>(piece * rows_per_piece(rows, kCpuPieceRows));
      const auto want = reference::softmax(
          attention.row_terms(q_head, first,
                              static_cast<std::size_t>(rows_per_piece(rows, kCpuPieceRows))),
          dim);
      const PartialHead& got = p.partials.head(Attention::kRow, q_head, piece);
      EXPECT_NEAR(got.m * std::log(2.0) + std::log(double{got.l}), want.lse, 1e-5);
      Vec out;
      for (int d = 0; d < dim; ++d) {
        out.push_back(double{p.partials.output(Attention::kRow, q_head, piece)[d]} / double{got.l});
      }
      EXPECT_LT(testing::max_error(out, want.out), 2e-5);
    }
  }
}

/// Slots for every second quad; the copies in the store are poisoned.
struct Slots {
  explicit Slots(Attention& attention)
      : quads(attention.scene.stored.num_pages() * kPageRows / kQuadRows),
        directory(std::vector<std::uint32_t>(
            static_cast<std::size_t>(quads * attention.scene.shape.num_kv_heads), kNoSlot)),
        quad_bytes(attention.scene.stored.view().row_bytes * kQuadRows),
        stride(static_cast<std::size_t>(quads) * quad_bytes + 128),
        bytes(stride * static_cast<std::size_t>(attention.scene.shape.num_kv_heads)) {
    for (int kv = 0; kv < attention.scene.shape.num_kv_heads; ++kv) {
      for (int quad = kv % 2; quad < quads; quad += 2) move(attention, kv, quad);
    }
    attention.slots = {directory.data(), quads, bytes.data(), stride};
  }
  void move(Attention& attention, int kv, int quad) {
    const auto slot = static_cast<std::uint32_t>(quads - 1 - quad);
    directory[static_cast<std::size_t>(kv * quads + quad)] = slot;
    std::byte* from =
        attention.scene.stored.view().row(kv, static_cast<std::uint32_t>(quad * kQuadRows));
    std::memcpy(bytes.data() + static_cast<std::size_t>(kv) * stride + slot * quad_bytes, from,
                quad_bytes);
    std::memset(from, 0xFF, quad_bytes);
  }
  int quads;
  testing::Guarded<std::uint32_t> directory;
  std::size_t quad_bytes, stride;
  testing::GuardedBytes bytes;
};

TEST_P(AttendRows, RecalledQuadsAreReadInTheirSlots) {
  Attention attention = make();
  attention.choose_some();
  const Result want = attention.run();
  const Slots slots(attention);
  const Result got = attention.run();
  EXPECT_TRUE(same_bits(want.out, got.out));
  EXPECT_TRUE(same_bits(want.lse, got.lse));
}

TEST_P(AttendRows, NanInAValueSpoilsItsKvHeadOnly) {
  Attention attention = make();
  attention.choose_some();
  const Result want = attention.run();
  attention.scene.live.poison(0, 1);
  const Result got = attention.run();
  const int dim = attention.value_dim();
  for (int head = attention.scene.group(); head < attention.scene.shape.num_q_heads; ++head) {
    EXPECT_EQ(std::memcmp(&got.out[static_cast<std::size_t>(head * dim)],
                          &want.out[static_cast<std::size_t>(head * dim)],
                          static_cast<std::size_t>(dim) * 4),
              0);
  }
}

TEST(AttendRowsErrors, RejectsHeadDim72) {
  const SequenceView view{};
  AttendParams params{};
  params.rows = &view;
  params.num_q_heads = params.num_kv_heads = 1;
  params.lists.selection_heads = 1;
  params.all_rows = true;
  params.stored.head_dim = params.live.head_dim = 72;
  EXPECT_THROW(ops_of(Backend::kCpu).attend_rows(params, 0, 0, 0), ConfigError);
}

std::string name_of_param(const ::testing::TestParamInfo<Param>& info) {
  const auto& [op, heads, grouping] = info.param;
  return testing::name_of(op) + "_" + name_of(heads) +
         (grouping == HeadGrouping::kShared ? "_shared" : "_perhead");
}

INSTANTIATE_TEST_SUITE_P(Ops, AttendRows,
                         ::testing::Combine(::testing::ValuesIn(testing::value_op_cases()),
                                            ::testing::Values(Heads{6, 2}, Heads{5, 1}),
                                            ::testing::Values(HeadGrouping::kShared,
                                                              HeadGrouping::kPerQueryHead)),
                         name_of_param);
// Groups of more heads than share a pass, and all others.
INSTANTIATE_TEST_SUITE_P(
    Groups, AttendRows,
    ::testing::Combine(::testing::Values(OpCase{Backend::kCpu, DType::kBF16, 64},
                                         OpCase{Backend::kCpu, DType::kF32, 128}),
                       ::testing::Values(Heads{1, 1}, Heads{2, 2}, Heads{4, 2}, Heads{8, 2},
                                         Heads{8, 1}, Heads{12, 1}, Heads{16, 1}, Heads{32, 2}),
                       ::testing::Values(HeadGrouping::kShared, HeadGrouping::kPerQueryHead)),
    name_of_param);

}  // namespace
}  // namespace clusterkv::attend
