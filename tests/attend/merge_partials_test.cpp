// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <tuple>

#include "tests/attend/fixture.hpp"
#include "tests/support/tensors.hpp"

namespace clusterkv::attend {
namespace {

using testing::Layout;
using Param = std::tuple<OpCase, HeadGrouping>;

class MergePartials : public ::testing::TestWithParam<Param> {
 protected:
  MergePartials()
      : attention(shape_of(std::get<0>(GetParam()), {6, 2}, {{90, 150}, {64 * 9, 600}},
                           IndexDType::kInt8),
                  std::get<1>(GetParam())) {
    attention.tail = Tail::kSecondMoment;
    attention.choose_some();
  }
  std::vector<reference::Term> all_terms(int q_head) {
    auto terms = attention.row_terms(q_head);
    const auto tail = attention.tail_terms(q_head);
    terms.insert(terms.end(), tail.begin(), tail.end());
    return terms;
  }
  int num_q_heads() const { return attention.scene.shape.num_q_heads; }

  Attention attention;
};

TEST_P(MergePartials, RowsAndTailAreOneSoftmax) {
  const Result got = attention.run();
  for (int head = 0; head < num_q_heads(); ++head) {
    const auto terms = all_terms(head);
    attention.expect(got, head, terms);
    const auto state = reference::softmax(terms, attention.value_dim());
    double tail = 0;
    for (const auto& term : attention.tail_terms(head)) {
      tail += term.weight * std::exp(term.logit - state.lse);
    }
    EXPECT_NEAR(got.tail_mass[static_cast<std::size_t>(head)], tail, 1e-5);
  }
}

TEST_P(MergePartials, PartsMergedApartAreTheWhole) {
  const Result whole = attention.run();
  const AttendParams p = attention.params();
  const Result rows = attention.merge(p, true, false);
  const Result tail = attention.merge(p, false, true);
  const int dim = attention.value_dim();
  for (int head = 0; head < num_q_heads(); ++head) {
    attention.expect(rows, head, attention.row_terms(head));
    const auto part = [&](const Result& r) {
      const auto first = r.out.begin() + head * dim;
      return reference::State{{first, first + dim}, double{r.lse[static_cast<std::size_t>(head)]}};
    };
    const auto want = reference::merge({part(rows), part(tail)});
    const reference::State got = part(whole);
    EXPECT_LT(testing::max_error(got.out, want.out), 1e-5);
    // The LSE of the whole is log(exp + exp) of the parts.
    EXPECT_NEAR(got.lse, want.lse, 1e-5 * std::max(1.0, std::abs(want.lse)));
  }
}

TEST_P(MergePartials, RoundsToTheTypeOfTheOutputAndKeepsItsGaps) {
  const Result want = attention.run();
  const int dim = attention.value_dim();
  testing::Random random(1);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    testing::Tensor out(dtype, 3, num_q_heads(), dim, Layout::kPadded, random);
    const Vec other = out.row(1, 2);
    attention.view().query_row = 2;
    testing::Guarded<std::int64_t> kept(16);
    for (int head = 0; head < num_q_heads(); ++head) {
      ops_of(Backend::kCpu)
          .merge_partials({attention.params(), true, true, out.view(), {}, nullptr, nullptr},
                          Attention::kRow, head);
      const Vec got = out.row(2, head);
      for (std::size_t d = 0; d < got.size(); ++d) {
        const float x = want.out[static_cast<std::size_t>(head * dim) + d];
        ASSERT_EQ(got[d], reference::rounded(dtype, double{x}));
      }
    }
    EXPECT_EQ(out.row(1, 2), other);
    EXPECT_TRUE(out.gaps_intact());
    attention.view().query_row = 0;
  }
}

// Partials written by hand: pieces without mass mean nothing, whatever stands in them.
TEST_P(MergePartials, PiecesWithoutMassAreIgnored) {
  attention.tail = Tail::kNone;
  attention.all_rows = true;
  const AttendParams p = attention.params();
  const int dim = attention.value_dim();
  const int pieces = num_row_pieces(num_attended_rows(p, Attention::kRow, 0), kCpuPieceRows);
  ASSERT_GE(pieces, 3);
  for (int head = 0; head < num_q_heads(); ++head) {
    for (int i = 0; i < pieces; ++i) {
      p.partials.head(Attention::kRow, head, i) = {NAN, 0.0F, 0.0F, 0};
      std::fill_n(p.partials.output(Attention::kRow, head, i), dim, NAN);
    }
    // 2^3 * (1, 10) and 2^5 * (2, 2 * 20): mass 72, output (80 + 1280) / 72.
    p.partials.head(Attention::kRow, head, 1) = {3.0F, 1.0F, 0.0F, 0};
    std::fill_n(p.partials.output(Attention::kRow, head, 1), dim, 10.0F);
    p.partials.head(Attention::kRow, head, pieces - 1) = {5.0F, 2.0F, 0.0F, 0};
    std::fill_n(p.partials.output(Attention::kRow, head, pieces - 1), dim, 40.0F);
  }
  const Result got = attention.merge(p, true, true);
  for (const float x : got.out) EXPECT_NEAR(x, 1360.0 / 72, 1e-5);
  for (const float x : got.lse) EXPECT_NEAR(x, std::log(72.0), 1e-6);
}

TEST_P(MergePartials, MaximaFarApartNeitherOverflowNorVanish) {
  attention.tail = Tail::kNone;
  attention.all_rows = true;
  const AttendParams p = attention.params();
  const int dim = attention.value_dim();
  const int pieces = num_row_pieces(num_attended_rows(p, Attention::kRow, 0), kCpuPieceRows);
  for (int head = 0; head < num_q_heads(); ++head) {
    for (int i = 0; i < pieces; ++i) {
      const bool large = i == 1;
      p.partials.head(Attention::kRow, head, i) = {large ? 14427.0F : -14427.0F, 1.0F, 0.0F, 0};
      std::fill_n(p.partials.output(Attention::kRow, head, i), dim, large ? 3.0F : 1e6F);
    }
  }
  const Result got = attention.merge(p, true, true);
  for (const float x : got.out) EXPECT_EQ(x, 3.0F);
  for (const float x : got.lse) EXPECT_NEAR(x, 14427 * std::log(2.0), 1e-2);
}

std::string name_of_param(const ::testing::TestParamInfo<Param>& info) {
  return testing::name_of(std::get<0>(info.param)) +
         (std::get<1>(info.param) == HeadGrouping::kShared ? "_shared" : "_perhead");
}

INSTANTIATE_TEST_SUITE_P(Ops, MergePartials,
                         ::testing::Combine(::testing::ValuesIn(testing::value_op_cases()),
                                            ::testing::Values(HeadGrouping::kShared,
                                                              HeadGrouping::kPerQueryHead)),
                         name_of_param);

}  // namespace
}  // namespace clusterkv::attend
