// SPDX-License-Identifier: Apache-2.0
//
// The device's attend over plans of two rows, outputs of other dtypes, and numbers at their limits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/attend/cuda/attend_ops.hpp"
#include "kernels/common/numeric.hpp"
#include "tests/attend/fixture.hpp"
#include "tests/support/device.hpp"

namespace clusterkv::attend {
namespace {

namespace on_device = testing::on_device;

constexpr int kHeadDim = 64;
constexpr double kLimit = 0x1p-11;  // of f16 weights

testing::SceneShape shape_of(Heads heads, std::vector<testing::SegmentShape> segments) {
  testing::SceneShape shape;
  shape.op = {Backend::kCuda, DType::kF16, kHeadDim};
  shape.index_dtype = IndexDType::kInt8;
  shape.num_q_heads = heads.q;
  shape.num_kv_heads = heads.kv;
  shape.segments = std::move(segments);
  return shape;
}

/// Queries as an engine has them: in the rows' dtype.
void round_query(std::vector<float>& query) {
  for (float& q : query) q = f16_to_float(float_to_f16(q));
}

/// Outputs of a plan [query row, q_head], of any dtype.
struct Outputs {
  testing::GuardedBytes out;
  testing::Guarded<float> lse;
};

/// One launch over both rows of a plan.
Outputs attend_plan(const AttendParams& p, int query_rows, int max_blocks,
                    DType dtype = DType::kF32, bool has_lse = true) {
  const int heads = query_rows * p.num_q_heads;
  Outputs got{testing::GuardedBytes(static_cast<std::size_t>(heads * kHeadDim) * size_of(dtype)),
              testing::Guarded<float>(static_cast<std::size_t>(heads))};
  const auto lists = static_cast<std::size_t>(2 * p.lists.selection_heads);
  testing::Guarded<std::uint32_t> arrived(std::vector<std::uint32_t>(lists, 0));
  const TensorView lse = contiguous_view(got.lse.data(), DType::kF32, {query_rows, p.num_q_heads});
  on_device::attend(
      {p, true, true, contiguous_view(got.out.data(), dtype, {query_rows, p.num_q_heads, kHeadDim}),
       has_lse ? lse : TensorView{}, nullptr, nullptr},
      arrived.data(), {2, max_blocks, nullptr});
  EXPECT_EQ(arrived.copy(), std::vector<std::uint32_t>(lists, 0)) << "counters are 0 again";
  EXPECT_TRUE(got.out.guards_intact() && got.lse.guards_intact());
  return got;
}

std::vector<float> head_of(Outputs& outputs, int head) {
  const float* from = outputs.out.as<float>() + head * kHeadDim;
  return {from, from + kHeadDim};
}

void expect_near(Outputs& got, int head, const std::vector<reference::Term>& terms) {
  const reference::State want = reference::softmax(terms, kHeadDim);
  EXPECT_LT(testing::max_error(head_of(got, head), want.out), kLimit) << "head " << head;
  EXPECT_LT(testing::relative_error(got.lse[static_cast<std::size_t>(head)], want.lse), 1e-5);
}

class DeviceAttendPlan : public testing::DeviceTest {
 protected:
  /// A plan whose row 0 is not there.
  static AttendParams alone(Attention& attention, SequenceView (&views)[2]) {
    AttendParams p = attention.params();
    views[0] = views[1] = p.rows[1];
    views[0].query_row = -1;
    p.rows = views;
    return p;
  }
};

/// Row 0 is the sequence of row 1 without its last block, 256 of 257, and so has more tail pieces. Blocks
/// have one cluster each.
class TwoRows {
 public:
  TwoRows()
      : attention_(shape_of({2, 1}, std::vector<testing::SegmentShape>(257, {1, 4})),
                   HeadGrouping::kShared) {
    for (const auto& cluster : attention_.scene.clusters[0]) {
      if (cluster.id / kBlockClusters % 5 != 0) attention_.choice[0][cluster.id] = cluster.size;
    }
    attention_.write_lists();
    attention_.tail = Tail::kMean;
    query_ = attention_.scene.query;
    for (const float q : attention_.scene.query) query_.push_back(-q);
    round_query(query_);
    attention_.scene.query.assign(query_.begin(), query_.begin() + 2 * kHeadDim);
    p_ = attention_.params();
    p_.query = query_.data();
    views_[1] = p_.rows[1];
    views_[0] = views_[1];
    views_[0].query_row = 1;
    views_[0].num_blocks = kShort;
    views_[0].num_segments = kShort;
    views_[0].num_stored = attention_.scene.segments[kShort].first_row;
    scores_[0] = scores_[1] = p_.scores[1];
    copy_list();
    write_totals();
    p_.rows = views_;
    p_.scores = scores_;
    p_.totals = totals_.data();
  }

  static constexpr int kShort = 256;
  Attention& attention() { return attention_; }
  SequenceView& view(int row) { return views_[row]; }
  Outputs run(int max_blocks) { return attend_plan(p_, 2, max_blocks); }

 private:
  void copy_list() {
    const SelectionLists& lists = p_.lists;
    const int all = lists.num_clusters[1];
    int count = 0;
    int rows = 0;
    for (; count < all && lists.clusters_of(1, 0)[count] < kShort * kBlockClusters; ++count) {
      lists.clusters_of(0, 0)[count] = lists.clusters_of(1, 0)[count];
      lists.counts_of(0, 0)[count] = lists.counts_of(1, 0)[count];
      rows += lists.counts_of(1, 0)[count];
    }
    std::copy_n(lists.rows_of(1, 0), rows, lists.rows_of(0, 0));
    lists.num_clusters[0] = count;
    lists.num_rows[0] = rows;
  }
  void write_totals() {
    for (int head = 0; head < 2; ++head) {
      HeadTotals total{-INFINITY, 0.0F, 0.0F};
      const auto sums = [&](int block) { return scores_[0].blocks[block * 2 + head]; };
      for (int b = 0; b < kShort; ++b) total.max = std::max(total.max, sums(b).max);
      for (int b = 0; b < kShort; ++b) {
        total.mass += sums(b).mass_sum * std::exp2(sums(b).max - total.max);
      }
      totals_[static_cast<std::size_t>(head)] = total;
      totals_[static_cast<std::size_t>(2 + head)] = p_.totals[2 + head];
    }
  }

  Attention attention_;
  AttendParams p_;
  std::vector<float> query_;
  SequenceView views_[2];
  RowScores scores_[2];
  testing::Guarded<HeadTotals> totals_{4};
};

TEST_F(DeviceAttendPlan, RowsOf256And257BlocksInOneLaunch) {
  TwoRows plan;
  Outputs both = plan.run(257);
  for (int head = 0; head < 2; ++head) {
    auto terms = plan.attention().row_terms(head);
    ASSERT_GE(terms.size(), 700U);
    for (auto& term : plan.attention().tail_terms(head)) terms.push_back(std::move(term));
    expect_near(both, head, terms);
  }
  plan.view(1).query_row = -1;
  Outputs alone = plan.run(256);
  for (int head = 2; head < 4; ++head) {
    EXPECT_EQ(head_of(both, head), head_of(alone, head)) << "the same bits in any plan";
    EXPECT_EQ(both.lse[static_cast<std::size_t>(head)], alone.lse[static_cast<std::size_t>(head)]);
  }
}

TEST_F(DeviceAttendPlan, OutputsAreRoundedToTheirDtypeAndNeedNoLse) {
  Attention attention(shape_of({4, 2}, {{20, 90}, {70, 150}}), HeadGrouping::kShared);
  round_query(attention.scene.query);
  attention.choose_some();
  attention.tail = Tail::kMean;
  SequenceView views[2];
  const AttendParams p = alone(attention, views);
  Outputs exact = attend_plan(p, 1, views[1].num_blocks);
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    Outputs got = attend_plan(p, 1, views[1].num_blocks, dtype, false);
    for (int i = 0; i < 4 * kHeadDim; ++i) {
      const float x = exact.out.as<float>()[i];
      const auto want = dtype == DType::kF16 ? float_to_f16(x) : float_to_bf16(x);
      ASSERT_EQ(got.out.as<std::uint16_t>()[i], want);
    }
    EXPECT_TRUE(std::isnan(got.lse[0])) << "not written";
  }
}

TEST_F(DeviceAttendPlan, HugeLogitsDoNotOverflow) {
  Attention attention(shape_of({4, 2}, {{20, 90}, {7, 31}}), HeadGrouping::kShared);
  round_query(attention.scene.query);
  attention.choose_some();
  attention.scale = 20.0F;  // logits of some hundreds
  SequenceView views[2];
  AttendParams p = alone(attention, views);
  Outputs got = attend_plan(p, 1, views[1].num_blocks);
  for (int head = 0; head < 4; ++head) expect_near(got, head, attention.row_terms(head));
  p.softmax_scale = 1e20F;  // one row has all the weight
  Outputs sharp = attend_plan(p, 1, views[1].num_blocks);
  for (int i = 0; i < 4 * kHeadDim; ++i) EXPECT_TRUE(std::isfinite(sharp.out.as<float>()[i]));
}

TEST_F(DeviceAttendPlan, NanOfAHeadStaysThere) {
  Attention attention(shape_of({4, 2}, {{20, 90}, {7, 31}}), HeadGrouping::kShared);
  round_query(attention.scene.query);
  attention.choose_some();
  SequenceView views[2];
  const AttendParams p = alone(attention, views);
  Outputs want = attend_plan(p, 1, views[1].num_blocks);
  std::fill_n(attention.scene.query.begin() + kHeadDim, kHeadDim, NAN);
  Outputs of_query = attend_plan(p, 1, views[1].num_blocks);
  for (const int head : {0, 2, 3}) EXPECT_EQ(head_of(of_query, head), head_of(want, head)) << head;
  for (std::int64_t row = 0; row < attention.scene.num_stored; ++row) {
    attention.scene.stored.poison(1, row);
  }
  Outputs of_rows = attend_plan(p, 1, views[1].num_blocks);
  EXPECT_EQ(head_of(of_rows, 0), head_of(want, 0));
}

// Its values do reach them: docs/decisions/004-cuda-kernels.md.
TEST_F(DeviceAttendPlan, NanKeyOfALaterTokenDoesNotReachEarlierOnes) {
  constexpr int kTokens = 3;
  testing::SceneShape shape = shape_of({2 * kTokens, 1}, {{20, 90}});
  shape.num_pending = 17;
  Attention attention(shape, HeadGrouping::kShared, 1, {kTokens, kTokens});
  round_query(attention.scene.query);
  attention.choose_some();
  SequenceView views[2];
  const AttendParams p = alone(attention, views);
  Outputs want = attend_plan(p, kTokens, views[1].num_blocks);
  const std::int64_t last = views[1].first_pending + shape.num_pending - 1;
  std::memset(attention.scene.live.bytes(0, last), 0xFF, kHeadDim * sizeof(std::uint16_t));
  Outputs got = attend_plan(p, kTokens, views[1].num_blocks);
  for (int at = 0; at < 2 * (kTokens - 1); ++at)
    EXPECT_EQ(head_of(got, at), head_of(want, at)) << at;
}

TEST_F(DeviceAttendPlan, OneToSixteenQueryTokens) {
  for (int tokens = 1; tokens <= 16; ++tokens) {
    testing::SceneShape shape = shape_of({2 * tokens, 1}, {{20, 90}});
    shape.num_pending = 17;
    Attention attention(shape, HeadGrouping::kShared, 1, {tokens, tokens});
    round_query(attention.scene.query);
    attention.choose_some();
    attention.tail = Tail::kMean;
    SequenceView views[2];
    const AttendParams p = alone(attention, views);
    Outputs got = attend_plan(p, tokens, views[1].num_blocks);
    for (int head = 0; head < shape.num_q_heads; ++head) {
      auto terms = attention.row_terms(head);
      for (auto& term : attention.tail_terms(head)) terms.push_back(std::move(term));
      const reference::State want = reference::softmax(terms, kHeadDim);
      const auto at = static_cast<int>(attention.output_of(head));
      EXPECT_LT(testing::max_error(head_of(got, at), want.out), kLimit) << tokens << ", " << head;
    }
  }
}

}  // namespace
}  // namespace clusterkv::attend
