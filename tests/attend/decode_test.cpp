// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <tuple>

#include "clusterkv/error.hpp"
#include "tests/attend/fixture.hpp"
#include "tests/support/tensors.hpp"

namespace clusterkv::attend {
namespace {

using testing::Layout;
using testing::Tensor;
using Param = std::tuple<OpCase, Heads>;

constexpr int kRows = 2;
constexpr int kTokens = 150;
constexpr float kScale = 0.11F;

class Decode : public ::testing::TestWithParam<Param> {
 protected:
  explicit Decode(Layout key_layout = Layout::kPadded)
      : query(op().dtype, kRows, heads().q, op().head_dim, Layout::kStrided, random),
        key(op().dtype, kRows * kTokens, heads().kv, op().head_dim, key_layout, random),
        value(op().dtype, kRows * kTokens, heads().kv, op().dims().value, Layout::kHeadMajor,
              random),
        out(op().dtype, kRows, heads().q, op().dims().value, Layout::kPadded, random),
        lse(std::vector<float>(static_cast<std::size_t>(kRows * heads().q), -7.0F)),
        params{query.view(),
               key.view4(kRows),
               value.view4(kRows),
               {},
               {},
               {},
               kScale,
               out.view(),
               contiguous_view(lse.data(), DType::kF32, {kRows, heads().q})} {}

  static OpCase op() { return std::get<0>(GetParam()); }
  static Heads heads() { return std::get<1>(GetParam()); }

  void run_all(int num_heads) {
    for (int row = 0; row < kRows; ++row) {
      for (int head = 0; head < num_heads; ++head) {
        ops_of(op().backend).decode(params, row, head);
      }
    }
    EXPECT_TRUE(lse.guards_intact());
    EXPECT_TRUE(out.gaps_intact());
  }
  void expect(int row, int q_head, const std::vector<int>& tokens) {
    std::vector<reference::Term> terms;
    const int kv = q_head / (heads().q / heads().kv);
    for (const int token : tokens) {
      const double logit = double{kScale} * reference::dot(query.row(row, q_head),
                                                           key.row(row * kTokens + token, kv));
      terms.push_back({reference::soft_capped(logit, double{params.logit_softcap}), 1.0,
                       value.row(row * kTokens + token, kv)});
    }
    const auto want = reference::softmax(terms, op().dims().value);
    EXPECT_LT(testing::max_error(out.row(row, q_head), want.out),
              testing::storage_limit(op().dtype, 1e-5));
    EXPECT_LT(
        testing::relative_error(lse[static_cast<std::size_t>(row * heads().q + q_head)], want.lse),
        1e-5);
  }
  static std::vector<int> first(int count) {
    std::vector<int> tokens;
    for (int i = 0; i < count; ++i) tokens.push_back(i);
    return tokens;
  }

  testing::Random random{19};
  Tensor query, key, value, out;
  testing::Guarded<float> lse;
  DecodeParams params;
};

TEST_P(Decode, MatchesReferenceOverAllTokens) {
  for (const float softcap : kSoftcaps) {
    params.logit_softcap = softcap;
    run_all(heads().kv);
    for (int row = 0; row < kRows; ++row) {
      for (int head = 0; head < heads().q; ++head) expect(row, head, first(kTokens));
    }
  }
}

TEST_P(Decode, EndsAtTheLengthOfEachRow) {
  for (const auto& [a, b] : {std::pair{1, 65}, {64, 149}}) {
    const std::int32_t lengths[kRows] = {a, b};
    params.lengths = contiguous_view(lengths, DType::kI32, {kRows});
    for (int d = 0; d < op().head_dim; ++d) key.set(b + kTokens, 0, d, NAN);
    run_all(heads().kv);
    for (int head = 0; head < heads().q; ++head) {
      expect(0, head, first(a));
      expect(1, head, first(b));
    }
    for (int d = 0; d < op().head_dim; ++d) key.set(b + kTokens, 0, d, 0.5);
  }
}

TEST_P(Decode, LengthZeroGivesZeroAndMinusInfinity) {
  const std::int32_t lengths[kRows] = {0, 3};
  params.lengths = contiguous_view(lengths, DType::kI32, {kRows});
  run_all(heads().kv);
  for (int head = 0; head < heads().q; ++head) {
    EXPECT_EQ(out.row(0, head), Vec(static_cast<std::size_t>(op().dims().value)));
    EXPECT_EQ(lse[static_cast<std::size_t>(head)], -INFINITY);
    expect(1, head, first(3));
  }
}

// Lists per KV head and per query head, of different lengths, in any order; all other tokens NaN.
TEST_P(Decode, AttendsTheTokensNamedAndReadsNoOthers) {
  for (const int lists : {heads().kv, heads().q}) {
    constexpr int kCapacity = 40;
    std::vector<std::int32_t> ids(static_cast<std::size_t>(kRows * lists * kCapacity), -1);
    std::vector<std::int32_t> counts;
    std::vector<std::vector<int>> named;
    for (int list = 0; list < kRows * lists; ++list) {
      named.push_back(testing::permutation(random, kTokens / 2));  // the later half is never named
      named.back().resize(static_cast<std::size_t>(list == 1 ? 0 : 3 + 37 * (list % 2)));
      counts.push_back(static_cast<std::int32_t>(named.back().size()));
      std::copy(named.back().begin(), named.back().end(), ids.begin() + list * kCapacity);
    }
    for (int row = 0; row < kRows; ++row) {
      for (int token = kTokens / 2; token < kTokens; ++token) {
        for (int kv = 0; kv < heads().kv; ++kv) {
          key.set(row * kTokens + token, kv, 0, NAN);
          value.set(row * kTokens + token, kv, 1, NAN);
        }
      }
    }
    params.token_ids = contiguous_view(ids.data(), DType::kI32, {kRows, lists, kCapacity});
    params.counts = contiguous_view(counts.data(), DType::kI32, {kRows, lists});
    run_all(lists);
    for (int row = 0; row < kRows; ++row) {
      for (int head = 0; head < heads().q; ++head) {
        const int list = row * lists + head * lists / heads().q;
        expect(row, head, named[static_cast<std::size_t>(list)]);
      }
    }
  }
}

TEST_P(Decode, WithoutLseTheOutputIsTheSame) {
  run_all(heads().kv);
  const Vec want = out.row(1, heads().q - 1);
  params.lse = {};
  run_all(heads().kv);
  EXPECT_EQ(out.row(1, heads().q - 1), want);
}

TEST_P(Decode, HugeLogitsDoNotOverflow) {
  params.softmax_scale = 500.0F;
  run_all(heads().kv);
  for (int head = 0; head < heads().q; ++head) {
    for (const double x : out.row(0, head)) EXPECT_TRUE(std::isfinite(x));
    EXPECT_TRUE(std::isfinite(lse[static_cast<std::size_t>(head)]));
  }
}

TEST(DecodeErrors, RejectsHeadDim72) {
  testing::Random random(1);
  Tensor tensor(DType::kF32, 1, 1, 72, Layout::kTokenMajor, random);
  const DecodeParams params{
      tensor.view(), tensor.view4(1), tensor.view4(1), {}, {}, {}, 1.0F, tensor.view(), {}};
  EXPECT_THROW(ops_of(Backend::kCpu).decode(params, 0, 0), ConfigError);
}

std::string name_of_param(const ::testing::TestParamInfo<Param>& info) {
  return testing::name_of(std::get<0>(info.param)) + "_" + name_of(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(Ops, Decode,
                         ::testing::Combine(::testing::ValuesIn(testing::value_op_cases()),
                                            ::testing::Values(Heads{1, 1}, Heads{6, 2}, Heads{5, 1},
                                                              Heads{12, 1})),
                         name_of_param);

}  // namespace
}  // namespace clusterkv::attend
