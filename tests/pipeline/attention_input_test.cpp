// SPDX-License-Identifier: Apache-2.0
//
// dense_decode, sparse_decode and merge_states refuse what makes no sense, and then write nothing.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "clusterkv/attention.hpp"
#include "tests/support/errors.hpp"
#include "tests/support/harness.hpp"

namespace clusterkv::testing {
namespace {

/// Good arguments of all three calls, and what they write.
class DecodeInput : public ::testing::Test {
 protected:
  DecodeInput() {
    const TensorView rows = contiguous_view(rows_.data(), DType::kF32, {2, 10, 2, 64});
    args_ = {view3(query_, 2, 4, 64), rows, rows,
             contiguous_view(lengths_.data(), DType::kI32, {2}), 0};
    out_ = make_out(output_, 2, 4, 64);
    for (Output& part : part_outputs_) parts_.push_back(make_out(part, 2, 4, 64));
  }
  void TearDown() override {
    EXPECT_EQ(output_.out, std::vector<float>(2 * 4 * 64, -7.0F)) << "a failed call wrote";
    EXPECT_EQ(output_.lse, std::vector<float>(2 * 4, -7.0F)) << "a failed call wrote";
  }

  using Spoil = std::function<void(DecodeArgs&, AttentionOut&)>;

  /// dense_decode and sparse_decode with spoilt arguments.
  template <class E>
  void expect_refused(const std::string& part, const Spoil& spoil) {
    DecodeArgs args = args_;
    AttentionOut out = out_;
    spoil(args, out);
    expect_error<E>([&] { dense_decode(args, out); }, part);
    expect_error<E>([&] { sparse_decode(args, ids_, counts_, out); }, part);
  }

  std::vector<float> query_ = std::vector<float>(2 * 4 * 64, 0.5F);
  std::vector<float> rows_ = std::vector<float>(2 * 10 * 2 * 64, 0.25F);
  std::vector<std::int32_t> lengths_ = {3, 10}, id_data_ = {0, 9, 2, 1}, count_data_ = {1, 0, 1, 1};
  TensorView ids_ = contiguous_view(id_data_.data(), DType::kI32, {2, 2, 1});
  TensorView counts_ = contiguous_view(count_data_.data(), DType::kI32, {2, 2});
  DecodeArgs args_;
  Output output_;
  AttentionOut out_;
  std::array<Output, 3> part_outputs_;
  std::vector<AttentionOut> parts_;
};

TEST_F(DecodeInput, TensorsOfDecodeAreChecked) {
  const auto spoilt = [&](TensorView DecodeArgs::*member) {
    return [this, member](TensorView t) {
      DecodeArgs args = args_;
      args.*member = t;
      dense_decode(args, out_);
    };
  };
  // The extents of query and key are those that others are measured by: hence errors of another name.
  expect_checked("", args_.query, DType::kI32, spoilt(&DecodeArgs::query));
  expect_checked("", args_.key, DType::kI32, spoilt(&DecodeArgs::key));
  expect_checked("value", args_.value, DType::kF16, spoilt(&DecodeArgs::value));
  expect_last_stride_checked("key", args_.key, spoilt(&DecodeArgs::key));
  expect_last_stride_checked("value", args_.value, spoilt(&DecodeArgs::value));
  const auto sparse = [&](TensorView ids, TensorView counts) {
    sparse_decode(args_, ids, counts, out_);
  };
  expect_checked("token_ids", ids_, DType::kF32, [&](TensorView t) { sparse(t, counts_); });
  expect_checked("counts", counts_, DType::kF32, [&](TensorView t) { sparse(ids_, t); });
  expect_checked("out", out_.out, DType::kI32, [&](TensorView t) {
    dense_decode(args_, {t, out_.lse});
  });
  expect_checked("lse", out_.lse, DType::kF16, [&](TensorView t) {
    sparse_decode(args_, ids_, counts_, {out_.out, t});
  });
  expect_last_stride_checked("out", out_.out, [&](TensorView t) {
    dense_decode(args_, {t, out_.lse});
  });
  expect_refused<ShapeError>("lengths", [](auto& a, auto&) { a.lengths.rank = 2; });
  expect_refused<ShapeError>("lengths", [](auto& a, auto&) { a.lengths.shape[0] = 3; });
  expect_refused<ShapeError>("lengths", [](auto& a, auto&) { a.lengths.data = nullptr; });
  expect_refused<ShapeError>("lengths",
                             [](auto& a, auto&) { a.lengths.device.kind = Device::kCuda; });
  expect_refused<DTypeError>("lengths", [](auto& a, auto&) { a.lengths.dtype = DType::kF32; });
}

TEST_F(DecodeInput, HeadsRowsAndScaleAreChecked) {
  expect_refused<ShapeError>("query: 3 heads, expected a multiple of key's 2",
                             [](auto& a, auto&) { a.query.shape[1] = 3; });
  expect_refused<ShapeError>("query: 0 heads", [](auto& a, auto&) { a.query.shape[1] = 0; });
  expect_refused<ShapeError>("at most 2^30 together", [](auto& a, auto&) {
    for (TensorView* t : {&a.query, &a.key, &a.value}) t->shape[0] = std::int64_t{1} << 62;
  });
  expect_refused<ShapeError>("head_dim 72", [](auto& a, auto&) {
    for (TensorView* t : {&a.key, &a.value}) t->shape[3] = 72;
    a.query.shape[2] = 72;
  });
  expect_refused<ShapeError>("value_dim 72", [](auto& a, auto&) { a.value.shape[3] = 72; });
  expect_refused<ShapeError>("out", [](auto& a, auto&) { a.value.shape[3] = 80; });
  for (const float scale : {NAN, INFINITY, -INFINITY, -1.0F}) {
    expect_refused<ValueError>("softmax_scale", [=](auto& a, auto&) { a.softmax_scale = scale; });
    expect_refused<ValueError>("logit_softcap", [=](auto& a, auto&) { a.logit_softcap = scale; });
  }
  expect_error<BackendUnavailable>(
      [&] {
        dense_decode(args_, out_, {Backend::kCuda, nullptr, nullptr});
      },
      "stream");
  expect_error<BackendUnavailable>(
      [&] {
        sparse_decode(args_, ids_, counts_, out_, {Backend::kCuda, nullptr, nullptr});
      },
      "stream");
}

TEST_F(DecodeInput, ValuesInsideTensorsAreChecked) {
  for (const int length : {-1, 11}) {
    lengths_[1] = length;
    expect_error<ValueError>([&] { dense_decode(args_, out_); }, "lengths: row 1 has");
  }
  lengths_[1] = 10;
  const auto sparse = [&] { sparse_decode(args_, ids_, counts_, out_); };
  for (const int count : {-1, 2}) {
    count_data_[3] = count;
    expect_error<ValueError>(sparse, "counts: row 1, head 1 has");
  }
  count_data_[3] = 1;
  for (const int id : {-1, 3}) {  // 3: past the length of row 0
    id_data_[0] = id;
    expect_error<ValueError>(sparse, "token_ids: row 0, head 0 has");
  }
}

TEST_F(DecodeInput, PartsToMergeAreChecked) {
  const auto merge = [&] { merge_states(parts_, out_); };
  expect_error<ShapeError>([&] { merge_states({}, out_); }, "parts: 0 of them");
  expect_checked("out", out_.out, DType::kI32, [&](TensorView t) {
    merge_states(parts_, {t, out_.lse});
  });
  expect_checked("lse", out_.lse, DType::kF16, [&](TensorView t) {
    merge_states(parts_, {out_.out, t});
  });
  for (const std::size_t i : {1U, 2U}) {
    const std::string name = "parts[" + std::to_string(i) + "]";
    const AttentionOut good = parts_[i];
    const auto with = [&](const AttentionOut& part) {
      parts_[i] = part;
      merge();
    };
    expect_checked(name + ".out", good.out, DType::kI32, [&](TensorView t) {
      with({t, good.lse});
    });
    expect_checked(name + ".lse", good.lse, DType::kF16, [&](TensorView t) {
      with({good.out, t});
    });
    parts_[i] = {good.out, {}};
    expect_error<ShapeError>(merge, name + ".lse");
    parts_[i] = good;
  }
  AttentionOut huge = parts_[0];
  for (TensorView* t : {&huge.out, &huge.lse}) t->shape[0] = std::int64_t{1} << 62;
  expect_error<ShapeError>([&] { merge_states({&huge, 1}, huge); }, "at most 2^30 together");
  huge.out.shape[2] = 257;
  expect_error<ShapeError>([&] { merge_states({&huge, 1}, huge); }, "parts[0].out: value_dim 257");
  expect_error<BackendUnavailable>(
      [&] {
        merge_states(parts_, out_, {Backend::kCuda, nullptr, nullptr});
      },
      "stream");
}

}  // namespace
}  // namespace clusterkv::testing
