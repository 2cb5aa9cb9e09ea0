// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "tests/attend/fixture.hpp"
#include "tests/support/tensors.hpp"

namespace clusterkv::attend {
namespace {

using testing::Layout;
using testing::Tensor;

constexpr int kRows = 2;
constexpr int kHeads = 3;

class MergeStates : public ::testing::TestWithParam<OpCase> {
 protected:
  static OpCase op() { return GetParam(); }
  static std::size_t dim() { return static_cast<std::size_t>(op().head_dim); }

  /// A part as a caller's tensors hold it.
  struct Part {
    explicit Part(testing::Random& random)
        : out(op().dtype, kRows, kHeads, op().head_dim, Layout::kPadded, random),
          lse(kRows * kHeads, 0.0F) {}
    void set(int row, int head, const reference::State& state) {
      for (int d = 0; d < op().head_dim; ++d) {
        out.set(row, head, d, state.out[static_cast<std::size_t>(d)]);
      }
      lse[static_cast<std::size_t>(row * kHeads + head)] = static_cast<float>(state.lse);
    }
    TensorView lse_view() { return contiguous_view(lse.data(), DType::kF32, {kRows, kHeads}); }
    Tensor out;
    std::vector<float> lse;
  };

  /// Merges one row and head into `total`.
  void merge(std::vector<Part>& parts, Part& total, int row, int head) {
    std::vector<TensorView> outs;
    std::vector<TensorView> lses;
    for (Part& part : parts) {
      outs.push_back(part.out.view());
      lses.push_back(part.lse_view());
    }
    ops_of(op().backend)
        .merge_states({outs.data(), lses.data(), static_cast<int>(parts.size()), total.out.view(),
                       total.lse_view()},
                      row, head);
    EXPECT_TRUE(total.out.gaps_intact());
  }
  reference::State some_state() {
    reference::State state{Vec(dim()), 3.0 * double{random.normal()}};
    for (double& x : state.out) x = double{random.normal()};
    return state;
  }

  testing::Random random{37};
};

// The parts are stored in `dtype` before they are merged, which is what the limit allows.
TEST_P(MergeStates, AnySplitOfTheKeysEqualsTheWhole) {
  constexpr int kTokens = 40;
  const Vec query(dim(), 0.05);
  std::vector<Vec> keys;
  std::vector<Vec> values;
  for (int i = 0; i < kTokens; ++i) {
    keys.push_back(some_state().out);
    values.push_back(some_state().out);
  }
  const auto whole = reference::attend(query, keys, values, 0.7);
  for (const int num_parts : {1, 2, 3, 7, kTokens}) {
    std::vector<std::vector<Vec>> part_keys(static_cast<std::size_t>(num_parts));
    auto part_values = part_keys;
    for (std::size_t i = 0; i < kTokens; ++i) {
      const auto to = static_cast<std::size_t>(random.between(0, num_parts - 1));
      part_keys[to].push_back(keys[i]);
      part_values[to].push_back(values[i]);
    }
    std::vector<Part> parts;
    for (std::size_t p = 0; p < part_keys.size(); ++p) {  // some parts are empty: lse = -inf
      parts.emplace_back(random);
      parts.back().set(1, 2, reference::attend(query, part_keys[p], part_values[p], 0.7));
    }
    Part total(random);
    merge(parts, total, 1, 2);
    EXPECT_LT(testing::max_error(total.out.row(1, 2), whole.out),
              2.5 * testing::storage_limit(op().dtype, 2e-6) + 1e-6);
    EXPECT_NEAR(total.lse[1 * kHeads + 2], whole.lse, 1e-5);
  }
}

TEST_P(MergeStates, TouchesItsRowAndHeadOnly) {
  std::vector<Part> parts(2, Part(random));
  for (Part& part : parts) part.set(0, 2, {Vec(dim(), 1.0), 3.0});
  Part total(random);
  const Vec other = total.out.row(0, 1);
  merge(parts, total, 0, 2);
  EXPECT_EQ(total.out.row(0, 1), other);
  for (std::size_t i = 0; i < total.lse.size(); ++i) {
    EXPECT_EQ(total.lse[i] == 0.0F, i != 2) << i;
  }
}

TEST_P(MergeStates, OnePartIsGivenBackUnchanged) {
  std::vector<Part> parts(1, Part(random));
  parts[0].set(0, 0, some_state());
  Part total(random);
  merge(parts, total, 0, 0);
  EXPECT_EQ(total.out.row(0, 0), parts[0].out.row(0, 0));
  EXPECT_NEAR(total.lse[0], parts[0].lse[0], 1e-6);
}

TEST_P(MergeStates, EmptyPartsWeighNothingWhateverTheyHold) {
  std::vector<Part> parts(3, Part(random));
  const auto state = some_state();
  parts[0].set(0, 0, {Vec(dim(), NAN), -INFINITY});
  parts[1].set(0, 0, state);
  parts[2].set(0, 0, {Vec(dim(), 1e4), -INFINITY});
  Part total(random);
  merge(parts, total, 0, 0);
  EXPECT_EQ(total.out.row(0, 0), parts[1].out.row(0, 0));
  EXPECT_NEAR(total.lse[0], state.lse, 1e-6 * std::max(1.0, std::abs(state.lse)));
}

TEST_P(MergeStates, OnlyEmptyPartsGiveZeroAndMinusInfinity) {
  std::vector<Part> parts(2, Part(random));
  for (Part& part : parts) part.set(0, 0, {Vec(dim(), 5.0), -INFINITY});
  Part total(random);
  merge(parts, total, 0, 0);
  EXPECT_EQ(total.out.row(0, 0), Vec(dim()));
  EXPECT_EQ(total.lse[0], -INFINITY);
}

TEST_P(MergeStates, HugeLseDoNotOverflow) {
  std::vector<Part> parts(3, Part(random));
  parts[0].set(0, 0, {Vec(dim(), 1.0), 1e4});
  parts[1].set(0, 0, {Vec(dim(), 3.0), 1e4});
  parts[2].set(0, 0, {Vec(dim(), 99.0), -1e4});
  Part total(random);
  merge(parts, total, 0, 0);
  EXPECT_EQ(total.out.row(0, 0), Vec(dim(), 2.0));
  EXPECT_NEAR(total.lse[0], 1e4 + std::log(2.0), 2e-3);  // half a unit in the last place of 1e4
}

TEST_P(MergeStates, TheTotalMayBeOneOfTheParts) {
  std::vector<Part> parts(2, Part(random));
  for (Part& part : parts) part.set(0, 0, some_state());
  Part total(random);
  merge(parts, total, 0, 0);
  merge(parts, parts[1], 0, 0);
  EXPECT_EQ(parts[1].out.row(0, 0), total.out.row(0, 0));
  EXPECT_EQ(parts[1].lse[0], total.lse[0]);
}

INSTANTIATE_TEST_SUITE_P(Ops, MergeStates, ::testing::ValuesIn(testing::op_cases()),
                         [](const auto& c) { return testing::name_of(c.param); });

}  // namespace
}  // namespace clusterkv::attend
