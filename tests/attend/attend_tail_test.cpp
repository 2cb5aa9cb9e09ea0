// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <tuple>

#include "clusterkv/error.hpp"
#include "tests/attend/fixture.hpp"

namespace clusterkv::attend {
namespace {

using Param = std::tuple<OpCase, IndexDType, Heads, HeadGrouping>;

class AttendTail : public ::testing::TestWithParam<Param> {
 protected:
  static Attention make(std::vector<testing::SegmentShape> segments = {{90, 300}, {7, 31}}) {
    const auto& [op, index_dtype, heads, grouping] = GetParam();
    auto shape = shape_of(op, heads, std::move(segments), index_dtype);
    shape.fill_rows = false;  // a tail that reads a row is NaN
    Attention attention(shape, grouping);
    attention.tail = Tail::kSecondMoment;
    return attention;
  }
  static Result run_tail(Attention& attention) {
    attention.view().num_sinks = attention.view().num_pending = 0;
    return attention.run(false, true);
  }
  static void expect_all(Attention& attention, const Result& got) {
    for (int head = 0; head < attention.scene.shape.num_q_heads; ++head) {
      attention.expect(got, head, attention.tail_terms(head));
    }
    for (int head = 0; head < attention.selection_heads(); ++head) {
      EXPECT_EQ(got.kept[static_cast<std::size_t>(head)], attention.kept_count(head));
    }
  }
};

TEST_P(AttendTail, MatchesReference) {
  Attention attention = make();
  attention.choose_some();
  const Result got = run_tail(attention);
  expect_all(attention, got);
  for (const float mass : got.tail_mass) EXPECT_NEAR(mass, 1.0F, 1e-6);  // it is all there is
}

TEST_P(AttendTail, HeadsOfAllQueryTokensShareIt) {
  const auto [op, index_dtype, heads, grouping] = GetParam();
  if (grouping == HeadGrouping::kPerQueryHead) return;
  const auto shape = shape_of(op, {heads.q * 3, heads.kv}, {{20, 90}, {130, 400}}, index_dtype);
  Attention attention(shape, grouping, 1, {3, 4});
  attention.tail = Tail::kMean;
  attention.choose_some();
  expect_all(attention, run_tail(attention));
}

TEST_P(AttendTail, WithoutAChoiceStandsForAllRows) {
  Attention attention = make();
  expect_all(attention, run_tail(attention));
}

TEST_P(AttendTail, AChoiceOfEverythingLeavesNothing) {
  Attention attention = make();
  for (int head = 0; head < attention.selection_heads(); ++head) {
    for (const auto& c :
         attention.scene.clusters[static_cast<std::size_t>(attention.kv_head_of(head))]) {
      attention.choice[static_cast<std::size_t>(head)][c.id] = c.size;
    }
  }
  attention.write_lists();
  const Result got = run_tail(attention);
  for (const float x : got.out) EXPECT_EQ(x, 0.0F);
  for (const float x : got.lse) EXPECT_EQ(x, -INFINITY);
  for (int head = 0; head < attention.selection_heads(); ++head) {
    EXPECT_EQ(got.kept[static_cast<std::size_t>(head)], 0);
  }
}

TEST_P(AttendTail, ManyBlocksMakeManyPieces) {
  Attention attention = make({{64 * 17, 1500}, {10, 40}});
  attention.choose_some();
  ASSERT_GT(num_tail_pieces(attention.view().num_blocks), 1);
  expect_all(attention, run_tail(attention));
}

TEST_P(AttendTail, SameBitsInAnyOrderOfPieces) {
  Attention attention = make({{64 * 9, 900}});
  attention.choose_some();
  attention.view().num_sinks = attention.view().num_pending = 0;
  const Result first = attention.run(false, true, false);
  const Result again = attention.run(false, true, true);
  EXPECT_EQ(std::memcmp(first.out.data(), again.out.data(), first.out.size() * 4), 0);
  EXPECT_EQ(first.lse, again.lse);
}

// Value means of clusters whose share is small, or that are attended whole, are NaN.
TEST_P(AttendTail, NeverReadsValueMeansThatDoNotMatter) {
  Attention attention = make();
  attention.choose_some();
  attention.scene.query.assign(attention.scene.query.size(), NAN);  // scores are all it needs
  Scene& scene = attention.scene;
  const auto [op, index_dtype, heads, grouping] = GetParam();
  if (grouping == HeadGrouping::kPerQueryHead && scene.group() > 1) return;  // lists differ
  for (int head = 0; head < attention.selection_heads(); ++head) {
    const int kv = attention.kv_head_of(head);
    for (const auto& c : scene.clusters[static_cast<std::size_t>(kv)]) {
      if (c.size > attention.taken(head, c.id) && attention.is_kept_for(head, c.id)) continue;
      const std::size_t at = scene.index.at(kv, scene.block_of(c.id), c.id % kBlockClusters);
      const std::size_t row = scene.index.view().mean_block_bytes() / kBlockClusters;
      std::memset(scene.index.view().value_means + at * row, 0xFF, row);
      scene.index.view().value_scale[at] = NAN;
    }
  }
  expect_all(attention, run_tail(attention));
}

TEST_P(AttendTail, NoneDenseAndEverythingHaveNoTail) {
  Attention attention = make();
  EXPECT_TRUE(has_tail(attention.params(), Attention::kRow));
  attention.view().everything = true;
  EXPECT_FALSE(has_tail(attention.params(), Attention::kRow));
  attention.view().everything = false;
  attention.all_rows = true;
  EXPECT_FALSE(has_tail(attention.params(), Attention::kRow));
  attention.all_rows = false;
  attention.tail = Tail::kNone;
  EXPECT_FALSE(has_tail(attention.params(), Attention::kRow));
  attention.tail = Tail::kMean;
  EXPECT_TRUE(has_tail(attention.params(), Attention::kRow));
}

TEST(AttendTailErrors, RejectsValueDim72) {
  const SequenceView view{};
  const RowScores scores{};
  const HeadTotals totals[1] = {};
  AttendParams params{};
  std::int32_t none = 0;
  params.rows = &view;
  params.scores = &scores;
  params.totals = totals;
  params.num_q_heads = params.num_kv_heads = 1;
  params.lists.selection_heads = 1;
  params.lists.num_clusters = params.lists.num_rows = &none;
  params.index.value_dim = params.partials.value_dim = 72;
  EXPECT_THROW(ops_of(Backend::kCpu).attend_tail(params, 0, 0, 0), ConfigError);
}

std::string name_of_param(const ::testing::TestParamInfo<Param>& info) {
  const auto& [op, index_dtype, heads, grouping] = info.param;
  return testing::name_of(op) + "_" + testing::name_of(index_dtype) + "_" + name_of(heads) +
         (grouping == HeadGrouping::kShared ? "_shared" : "_perhead");
}

std::vector<OpCase> f32_cases() {  // rows are not read, so their dtype does not matter
  std::vector<OpCase> cases = testing::value_op_cases();
  std::erase_if(cases, [](const OpCase& c) { return c.dtype != DType::kF32; });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(
    Ops, AttendTail,
    ::testing::Combine(::testing::ValuesIn(f32_cases()),
                       ::testing::Values(IndexDType::kInt8, IndexDType::kBF16, IndexDType::kF32),
                       ::testing::Values(Heads{6, 2}, Heads{5, 1}),
                       ::testing::Values(HeadGrouping::kShared, HeadGrouping::kPerQueryHead)),
    name_of_param);
INSTANTIATE_TEST_SUITE_P(
    Groups, AttendTail,
    ::testing::Combine(::testing::Values(OpCase{Backend::kCpu, DType::kF32, 64}),
                       ::testing::Values(IndexDType::kInt8),
                       ::testing::Values(Heads{1, 1}, Heads{2, 2}, Heads{4, 2}, Heads{4, 1},
                                         Heads{8, 1}, Heads{12, 1}, Heads{16, 1}, Heads{32, 2}),
                       ::testing::Values(HeadGrouping::kShared, HeadGrouping::kPerQueryHead)),
    name_of_param);

}  // namespace
}  // namespace clusterkv::attend
