// SPDX-License-Identifier: Apache-2.0
//
// The device's attend ops against fp64, and which clusters the tail keeps against the CPU's.
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "kernels/attend/cuda/attend_ops.hpp"
#include "tests/attend/fixture.hpp"
#include "tests/support/device.hpp"

namespace clusterkv::attend {
namespace {

namespace on_device = testing::on_device;
using testing::DeviceTest;

/// Weights and queries are rounded to the rows' dtype: half an ulp of either, relative to a weight.
double limit_of(DType dtype) {
  return dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
}

/// Queries as an engine has them: in the rows' dtype.
void round_query(Scene& scene) {
  const bool is_f16 = scene.shape.op.dtype == DType::kF16;
  const auto format = is_f16 ? reference::kF16Format : reference::kBF16Format;
  for (float& q : scene.query) {
    q = static_cast<float>(reference::decode(format, reference::encode(format, double{q})));
  }
}

/// One launch over the plan; its row 0 does not attend.
Result run_on_device(Attention& attention, bool rows_part = true, bool tail_part = true) {
  AttendParams p = attention.params();
  SequenceView views[2] = {p.rows[0], p.rows[1]};
  views[0].query_row = -1;
  p.rows = views;
  const auto lists = static_cast<std::size_t>(2 * p.lists.selection_heads);
  testing::Guarded<std::uint32_t> arrived(std::vector<std::uint32_t>(lists, 0));
  const Result result = attention.collect(
      [&](const MergeParams& merge) {
        on_device::attend(merge, arrived.data(), {2, attention.view().num_blocks + 2, nullptr});
      },
      p, rows_part, tail_part);
  EXPECT_EQ(arrived.copy(), std::vector<std::uint32_t>(lists, 0)) << "counters are 0 again";
  return result;
}

void expect_near(const Attention& attention, const Result& got, int q_head,
                 const std::vector<reference::Term>& terms) {
  const int dim = attention.value_dim();
  const reference::State want = reference::softmax(terms, dim);
  const std::span out(got.out.data() + q_head * dim, static_cast<std::size_t>(dim));
  const double limit = limit_of(attention.scene.shape.op.dtype);
  EXPECT_LT(testing::max_error(out, want.out), limit) << "head " << q_head;
  EXPECT_LT(testing::relative_error(got.lse[static_cast<std::size_t>(q_head)], want.lse), 1e-5);
}

using Param = std::tuple<DType, testing::Dims, Heads, HeadGrouping>;

class DeviceAttend : public DeviceTest, public ::testing::WithParamInterface<Param> {
 protected:
  static Attention make(std::vector<testing::SegmentShape> segments, int num_pending = 11,
                        IndexDType index_dtype = IndexDType::kInt8) {
    const auto& [dtype, dims, heads, grouping] = GetParam();
    testing::SceneShape shape = shape_of({Backend::kCuda, dtype, dims.key, dims.value}, heads,
                                         std::move(segments), index_dtype);
    shape.num_pending = num_pending;
    Attention attention(shape, grouping);
    round_query(attention.scene);
    return attention;
  }
};

TEST_P(DeviceAttend, RowsMatchReference) {
  for (const int pending : {0, 5, 11, 61}) {
    Attention attention = make({{20, 90}, {7, 31}}, pending);
    attention.choose_some();
    attention.softcap = kSoftcaps[pending % 2];
    const Result got = run_on_device(attention);
    for (int head = 0; head < attention.scene.shape.num_q_heads; ++head) {
      expect_near(attention, got, head, attention.row_terms(head));
      EXPECT_EQ(got.tail_mass[static_cast<std::size_t>(head)], 0.0F);
    }
  }
}

// Four heads: 12 pieces in which a warp has three tiles, more than buffers. Others: pieces of one tile a warp.
TEST_P(DeviceAttend, ManyPiecesMatchReference) {
  const auto& [dtype, dims, heads, grouping] = GetParam();
  const bool is_long = heads.q == 4 && grouping == HeadGrouping::kShared;
  Attention attention = make({{20, is_long ? 1200 : 150}, {90, is_long ? 1000 : 120}}, 30);
  attention.all_rows = true;
  const Result got = run_on_device(attention);
  for (int head = 0; head < attention.scene.shape.num_q_heads; ++head) {
    expect_near(attention, got, head, attention.row_terms(head));
  }
}

TEST_P(DeviceAttend, TailMatchesReferenceAndKeepsTheClustersOfTheCpu) {
  for (const IndexDType dtype : {IndexDType::kInt8, IndexDType::kBF16, IndexDType::kF32}) {
    Attention attention = make({{20, 60}, {130, 200}, {64, 100}}, 11, dtype);
    attention.choose_some();
    attention.tail = Tail::kMean;
    Result cpu = attention.run();
    cpu.kept.resize(static_cast<std::size_t>(attention.selection_heads()));
    const Result got = run_on_device(attention);
    EXPECT_EQ(cpu.kept, got.kept);
    for (int head = 0; head < attention.scene.shape.num_q_heads; ++head) {
      auto terms = attention.row_terms(head);
      for (auto& term : attention.tail_terms(head)) terms.push_back(std::move(term));
      expect_near(attention, got, head, terms);
      EXPECT_NEAR(got.tail_mass[static_cast<std::size_t>(head)],
                  cpu.tail_mass[static_cast<std::size_t>(head)], 1e-4);
    }
  }
}

TEST_P(DeviceAttend, TailAloneIsOnePartOfTheWhole) {
  Attention attention = make({{130, 400}});
  attention.choose_some();
  attention.tail = Tail::kMean;
  const Result got = run_on_device(attention, /*rows_part=*/false);
  for (int head = 0; head < attention.scene.shape.num_q_heads; ++head) {
    expect_near(attention, got, head, attention.tail_terms(head));
  }
}

/// What runs in many schedules: pieces of rows and of the tail and their merge, in one launch.
TEST_P(DeviceAttend, RowsAndTailInOneLaunch) {
  Attention attention = make({{20, 90}, {130, 250}});
  attention.choose_some();
  attention.tail = Tail::kMean;
  const Result got = run_on_device(attention);
  for (int head = 0; head < attention.scene.shape.num_q_heads; ++head) {
    auto terms = attention.row_terms(head);
    for (auto& term : attention.tail_terms(head)) terms.push_back(std::move(term));
    expect_near(attention, got, head, terms);
  }
}

TEST_P(DeviceAttend, QueryTokensAreCausal) {
  const auto& [dtype, dims, heads, grouping] = GetParam();
  if (grouping == HeadGrouping::kPerQueryHead) return;
  for (const int tokens : {2, 3, 16}) {
    testing::SceneShape shape = shape_of({Backend::kCuda, dtype, dims.key, dims.value},
                                         {heads.q * tokens, heads.kv}, {{20, 60}, {130, 200}});
    shape.num_pending = 17;
    Attention attention(shape, grouping, 1, {tokens, tokens + 1});
    round_query(attention.scene);
    attention.choose_some();
    attention.tail = Tail::kMean;
    attention.softcap = kSoftcaps[tokens % 2];
    const Result got = run_on_device(attention);
    for (int head = 0; head < shape.num_q_heads; ++head) {
      auto terms = attention.row_terms(head);
      for (auto& term : attention.tail_terms(head)) terms.push_back(std::move(term));
      expect_near(attention, got, head, terms);
    }
  }
}

TEST_P(DeviceAttend, NothingToAttendGivesZeroAndMinusInfinity) {
  Attention attention = make({{20, 90}}, 0);
  attention.view().num_sinks = 0;
  attention.view().everything = true;
  const Result got = run_on_device(attention);
  for (const float x : got.out) EXPECT_EQ(x, 0.0F);
  for (const float x : got.lse) EXPECT_EQ(x, -INFINITY);
}

TEST_P(DeviceAttend, SameBitsOnEveryRun) {
  Attention attention = make({{20, 60}, {130, 200}});
  attention.choose_some();
  attention.tail = Tail::kMean;
  const Result first = run_on_device(attention);
  for (const std::uint64_t seed : {3, 4}) {
    set_schedule(seed);
    const Result again = run_on_device(attention);
    EXPECT_EQ(first.out, again.out);
    EXPECT_EQ(first.lse, again.lse);
  }
}

std::string name_of_param(const ::testing::TestParamInfo<Param>& info) {
  const auto& [dtype, dims, heads, grouping] = info.param;
  return testing::name_of(dtype) + "_" + testing::name_of(dims) + "_" + name_of(heads) +
         (grouping == HeadGrouping::kShared ? "_shared" : "_own");
}

INSTANTIATE_TEST_SUITE_P(
    Ops, DeviceAttend,
    ::testing::Combine(::testing::Values(DType::kF16, DType::kBF16),
                       ::testing::Values(64, 80, 96, 128, 256),
                       ::testing::Values(Heads{4, 2}, Heads{5, 1}, Heads{12, 1}),
                       ::testing::Values(HeadGrouping::kShared, HeadGrouping::kPerQueryHead)),
    name_of_param);

// Values of another length: the kernel for any two dims.
INSTANTIATE_TEST_SUITE_P(Values, DeviceAttend,
                         ::testing::Combine(::testing::Values(DType::kF16, DType::kBF16),
                                            ::testing::Values(testing::Dims{64, 128},
                                                              testing::Dims{256, 80},
                                                              testing::Dims{96, 256}),
                                            ::testing::Values(Heads{4, 2}),
                                            ::testing::Values(HeadGrouping::kShared)),
                         name_of_param);

}  // namespace
}  // namespace clusterkv::attend
