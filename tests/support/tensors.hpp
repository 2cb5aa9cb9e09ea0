// SPDX-License-Identifier: Apache-2.0
//
// A caller's tensor [tokens, heads, dim] of any element type and layout.
#pragma once

#include <cstring>
#include <vector>

#include "tests/support/stores.hpp"

namespace clusterkv::testing {

enum class Layout {
  kTokenMajor,  ///< contiguous [tokens, heads, dim]
  kHeadMajor,   ///< contiguous [heads, tokens, dim]
  kPadded,      ///< last stride 1, gaps between heads and tokens
  kStrided,     ///< every axis with gaps, also the last
};

/// Random numbers; gaps are NaN.
class Tensor {
 public:
  Tensor(DType dtype, int tokens, int heads, int dim, Layout layout, Random& random)
      : dtype_(dtype), shape_{tokens, heads, dim} {
    const int last = layout == Layout::kStrided ? 3 : 1;
    const int gap = layout == Layout::kTokenMajor || layout == Layout::kHeadMajor ? 0 : 5;
    const int row = dim * last + gap;
    stride_[2] = last;
    stride_[1] = layout == Layout::kHeadMajor ? row * tokens : row;
    stride_[0] = layout == Layout::kHeadMajor ? row : row * heads + gap;
    const int elements = layout == Layout::kHeadMajor ? row * tokens * heads : tokens * stride_[0];
    bytes_ = GuardedBytes(static_cast<std::size_t>(elements) * size_of(dtype));
    for (int t = 0; t < tokens; ++t) {
      for (int h = 0; h < heads; ++h) {
        for (int d = 0; d < dim; ++d) set(t, h, d, double{random.normal()});
      }
    }
  }

  TensorView view() {
    TensorView v = contiguous_view(bytes_.data(), dtype_, {shape_[0], shape_[1], shape_[2]});
    v.stride = {stride_[0], stride_[1], stride_[2]};
    return v;
  }
  /// As [rows, tokens / rows, heads, dim].
  TensorView view4(int rows) {
    const int each = shape_[0] / rows;
    TensorView v = contiguous_view(bytes_.data(), dtype_, {rows, each, shape_[1], shape_[2]});
    v.stride = {each * stride_[0], stride_[0], stride_[1], stride_[2]};
    return v;
  }
  void set(int token, int head, int d, double value) {
    std::byte* to = at(token, head, d);
    if (dtype_ == DType::kF32) {
      const auto x = static_cast<float>(value);
      std::memcpy(to, &x, 4);
    } else {
      const std::uint16_t bits = reference::encode(
          dtype_ == DType::kF16 ? reference::kF16Format : reference::kBF16Format, value);
      std::memcpy(to, &bits, 2);
    }
  }
  [[nodiscard]] Vec row(int token, int head) {
    Vec x;
    for (int d = 0; d < shape_[2]; ++d) x.push_back(get(token, head, d));
    return x;
  }
  [[nodiscard]] const GuardedBytes& bytes() const { return bytes_; }
  /// Whether the guards and all bytes between rows are as they were made.
  [[nodiscard]] bool gaps_intact() {
    std::vector<bool> used(bytes_.size());
    for (int t = 0; t < shape_[0]; ++t) {
      for (int h = 0; h < shape_[1]; ++h) {
        for (int d = 0; d < shape_[2]; ++d) {
          const auto first = static_cast<std::size_t>(at(t, h, d) - bytes_.data());
          for (std::size_t i = 0; i < size_of(dtype_); ++i) used[first + i] = true;
        }
      }
    }
    for (std::size_t i = 0; i < used.size(); ++i) {
      if (!used[i] && bytes_.data()[i] != std::byte{0xFF}) return false;
    }
    return bytes_.guards_intact();
  }

 private:
  std::byte* at(int token, int head, int d) {
    return bytes_.data() +
           static_cast<std::size_t>(token * stride_[0] + head * stride_[1] + d * stride_[2]) *
               size_of(dtype_);
  }
  double get(int token, int head, int d) {
    if (dtype_ == DType::kF32) {
      float x;
      std::memcpy(&x, at(token, head, d), 4);
      return double{x};
    }
    std::uint16_t bits;
    std::memcpy(&bits, at(token, head, d), 2);
    return reference::decode(dtype_ == DType::kF16 ? reference::kF16Format : reference::kBF16Format,
                             bits);
  }

  DType dtype_;
  int shape_[3];
  int stride_[3] = {};
  GuardedBytes bytes_;
};

}  // namespace clusterkv::testing
