// SPDX-License-Identifier: Apache-2.0
//
// The device's dense and sparse decode over an engine's tensors, and merging of states, against fp64.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <tuple>

#include "clusterkv/error.hpp"
#include "kernels/attend/cuda/attend_ops.hpp"
#include "tests/attend/fixture.hpp"
#include "tests/support/device.hpp"
#include "tests/support/tensors.hpp"

namespace clusterkv::attend {
namespace {

namespace on_device = testing::on_device;
using testing::Layout;
using testing::Tensor;
using Param = std::tuple<DType, testing::Dims, Heads>;

constexpr int kRows = 2;
constexpr int kTokens = 1100;  // two pieces of 128 in the last of nine
constexpr float kScale = 0.11F;

class DeviceDecode : public testing::DeviceTest, public ::testing::WithParamInterface<Param> {
 protected:
  DeviceDecode()
      : query(dtype(), kRows, heads().q, dim(), Layout::kStrided, random),
        key(dtype(), kRows * kTokens, heads().kv, dim(), Layout::kTokenMajor, random),
        value(dtype(), kRows * kTokens, heads().kv, value_dim(), Layout::kHeadMajor, random),
        out(DType::kF32, kRows, heads().q, value_dim(), Layout::kPadded, random),
        lse(static_cast<std::size_t>(kRows * heads().q)),
        params{query.view(),
               key.view4(kRows),
               value.view4(kRows),
               {},
               {},
               {},
               kScale,
               out.view(),
               contiguous_view(lse.data(), DType::kF32, {kRows, heads().q})} {}

  static DType dtype() { return std::get<0>(GetParam()); }
  static int dim() { return std::get<1>(GetParam()).key; }
  static int value_dim() { return std::get<1>(GetParam()).value; }
  static Heads heads() { return std::get<2>(GetParam()); }

  void run() {
    const auto pieces = static_cast<std::size_t>(kRows * heads().q) * kMaxPieces;
    testing::Guarded<PartialHead> partial_heads(pieces);
    testing::Guarded<float> outputs(pieces * static_cast<std::size_t>(value_dim()));
    const auto lists = static_cast<std::size_t>(kRows * heads().q);
    testing::Guarded<std::uint32_t> arrived(std::vector<std::uint32_t>(lists, 0));
    on_device::decode(params, {partial_heads.data(), outputs.data(), heads().q, value_dim()},
                      arrived.data(), nullptr);
    EXPECT_EQ(arrived.copy(), std::vector<std::uint32_t>(lists, 0)) << "counters are 0 again";
    EXPECT_TRUE(lse.guards_intact() && out.gaps_intact());
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
    const auto want = reference::softmax(terms, value_dim());
    // Weights are rounded to the rows' dtype.
    const double limit = dtype() == DType::kBF16 ? 0x1p-8 : 0x1p-11;
    EXPECT_LT(testing::max_error(out.row(row, q_head), want.out), limit);
    EXPECT_LT(
        testing::relative_error(lse[static_cast<std::size_t>(row * heads().q + q_head)], want.lse),
        1e-5);
  }
  static std::vector<int> first(int count) {
    std::vector<int> tokens(static_cast<std::size_t>(count));
    std::iota(tokens.begin(), tokens.end(), 0);
    return tokens;
  }

  testing::Random random{19};
  Tensor query, key, value, out;
  testing::Guarded<float> lse;
  DecodeParams params;
};

TEST_P(DeviceDecode, EndsAtTheLengthOfEachRow) {
  const std::int32_t lengths[kRows] = {1, kTokens};
  params.lengths = contiguous_view(lengths, DType::kI32, {kRows});
  for (const float softcap : kSoftcaps) {
    params.logit_softcap = softcap;
    run();
    for (int row = 0; row < kRows; ++row) {
      for (int head = 0; head < heads().q; ++head) expect(row, head, first(lengths[row]));
    }
  }
}

TEST_P(DeviceDecode, ReadsTheTokensOfTheListsOnly) {
  for (const int num_lists : {heads().kv, heads().q}) {
    constexpr int kCapacity = 90;
    std::vector<std::int32_t> ids, counts;
    std::vector<std::vector<int>> lists;
    for (int list = 0; list < kRows * num_lists; ++list) {
      lists.emplace_back();
      for (int i = 0; i < kCapacity; ++i) {
        const int token = random.between(0, kTokens - 1);
        ids.push_back(i < 3 + 9 * list ? token : -1);
        if (i < 3 + 9 * list) lists.back().push_back(token);
      }
      counts.push_back(static_cast<std::int32_t>(lists.back().size()));
    }
    params.token_ids = contiguous_view(ids.data(), DType::kI32, {kRows, num_lists, kCapacity});
    params.counts = contiguous_view(counts.data(), DType::kI32, {kRows, num_lists});
    run();
    for (int row = 0; row < kRows; ++row) {
      for (int head = 0; head < heads().q; ++head) {
        const int list = row * num_lists + head / (heads().q / num_lists);
        expect(row, head, lists[static_cast<std::size_t>(list)]);
      }
    }
  }
}

TEST_P(DeviceDecode, LengthZeroGivesZeroAndMinusInfinity) {
  const std::int32_t lengths[kRows] = {0, 3};
  params.lengths = contiguous_view(lengths, DType::kI32, {kRows});
  run();
  for (int head = 0; head < heads().q; ++head) {
    EXPECT_EQ(out.row(0, head), Vec(static_cast<std::size_t>(value_dim())));
    EXPECT_EQ(lse[static_cast<std::size_t>(head)], -INFINITY);
    expect(1, head, first(3));
  }
}

TEST_P(DeviceDecode, TakesRowsWithGapsAndNoLse) {
  const std::int32_t lengths[kRows] = {5, 70};
  params.lengths = contiguous_view(lengths, DType::kI32, {kRows});
  run();
  const std::vector<float> want_lse = lse.copy();
  const Vec want = out.row(1, heads().q - 1);
  Tensor wide(dtype(), kRows * kTokens, heads().kv + 1, dim(), Layout::kTokenMajor, random);
  for (int row = 0; row < kRows; ++row) {
    for (int token = row * kTokens; token < row * kTokens + lengths[row]; ++token) {
      for (int head = 0; head < heads().kv; ++head) {
        const Vec x = key.row(token, head);
        for (int d = 0; d < dim(); ++d) wide.set(token, head, d, x[static_cast<std::size_t>(d)]);
      }
    }
  }
  params.key = wide.view4(kRows);
  params.key.shape[2] = heads().kv;
  params.lse = {};
  lse = testing::Guarded<float>(lse.size());
  const std::vector<float> untouched = lse.copy();
  run();
  EXPECT_EQ(out.row(1, heads().q - 1), want);
  EXPECT_EQ(std::memcmp(lse.data(), untouched.data(), untouched.size() * sizeof(float)), 0);
}

TEST_P(DeviceDecode, RefusesRowsThatAreNotAligned) {
  Tensor padded(dtype(), kRows * kTokens, heads().kv, dim(), Layout::kPadded, random);
  const TensorView aligned = params.key;
  params.key = padded.view4(kRows);
  EXPECT_THROW(run(), ShapeError);
  params.key = aligned;
  params.key.data = static_cast<std::byte*>(params.key.data) + 2;
  EXPECT_THROW(run(), ShapeError);
  params.key = aligned;
  params.value = padded.view4(kRows);
  EXPECT_THROW(run(), ShapeError);
}

TEST_P(DeviceDecode, TheTotalMayBeOneOfTheParts) {
  Tensor part(DType::kF32, kRows, heads().q, value_dim(), Layout::kPadded, random);
  const auto states = static_cast<std::size_t>(kRows * heads().q);
  testing::Guarded<float> part_lse(random.normals(states)), total_lse(random.normals(states));
  const auto lse_view = [&](testing::Guarded<float>& values) {
    return contiguous_view(values.data(), DType::kF32, {kRows, heads().q});
  };
  Tensor total = out;
  const TensorView outs[2] = {part.view(), total.view()};
  const TensorView lses[2] = {lse_view(part_lse), lse_view(total_lse)};
  on_device::merge_states({outs, lses, 2, out.view(), params.lse}, nullptr);
  on_device::merge_states({outs, lses, 2, total.view(), lses[1]}, nullptr);
  EXPECT_EQ(total_lse.copy(), lse.copy());
  for (int row = 0; row < kRows; ++row) {
    for (int head = 0; head < heads().q; ++head) {
      EXPECT_EQ(total.row(row, head), out.row(row, head));
    }
  }
}

TEST_P(DeviceDecode, StatesMergeAsOnTheCpu) {
  constexpr int kParts = 3;
  std::vector<Tensor> outs;
  std::vector<std::vector<float>> lses;
  std::vector<TensorView> out_views, lse_views;
  for (int part = 0; part < kParts; ++part) {
    outs.emplace_back(part == 1 ? DType::kF16 : DType::kF32, kRows, heads().q, value_dim(),
                      Layout::kPadded, random);
    lses.push_back(random.normals(static_cast<std::size_t>(kRows * heads().q), 3.0F));
    lses.back()[static_cast<std::size_t>(part)] = -INFINITY;
  }
  for (auto& values : lses) values.back() = -INFINITY;  // nothing at all
  for (std::size_t part = 0; part < kParts; ++part) {
    out_views.push_back(outs[part].view());
    lse_views.push_back(contiguous_view(lses[part].data(), DType::kF32, {kRows, heads().q}));
  }
  Tensor cpu_out(DType::kF32, kRows, heads().q, value_dim(), Layout::kPadded, random);
  testing::Guarded<float> cpu_lse(lse.size());
  StateParams p{out_views.data(), lse_views.data(), kParts, cpu_out.view(),
                contiguous_view(cpu_lse.data(), DType::kF32, {kRows, heads().q})};
  for (int row = 0; row < kRows; ++row) {
    for (int head = 0; head < heads().q; ++head) cpu().merge_states(p, row, head);
  }
  p.out = out.view();
  p.lse = params.lse;
  on_device::merge_states(p, nullptr);
  for (int row = 0; row < kRows; ++row) {
    for (int head = 0; head < heads().q; ++head) {
      EXPECT_EQ(out.row(row, head), cpu_out.row(row, head));
      const auto at = static_cast<std::size_t>(row * heads().q + head);
      EXPECT_LE(testing::relative_error(lse[at], double{cpu_lse[at]}), 1e-6)
          << "log2 is a library's";
    }
  }
}

std::string name_of_param(const ::testing::TestParamInfo<Param>& info) {
  const auto& [dtype, dims, heads] = info.param;
  return testing::name_of(dtype) + "_" + testing::name_of(dims) + "_" + name_of(heads);
}
INSTANTIATE_TEST_SUITE_P(Ops, DeviceDecode,
                         ::testing::Combine(::testing::Values(DType::kF16, DType::kBF16),
                                            ::testing::Values(64, 80, 96, 128, 256),
                                            ::testing::Values(Heads{4, 2}, Heads{12, 1})),
                         name_of_param);
INSTANTIATE_TEST_SUITE_P(Values, DeviceDecode,
                         ::testing::Combine(::testing::Values(DType::kF16, DType::kBF16),
                                            ::testing::Values(testing::Dims{64, 128},
                                                              testing::Dims{256, 80}),
                                            ::testing::Values(Heads{4, 2})),
                         name_of_param);

}  // namespace
}  // namespace clusterkv::attend
