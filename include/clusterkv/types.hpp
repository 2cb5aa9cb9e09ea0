// SPDX-License-Identifier: Apache-2.0
//
// The plain types that cross the public API: element types, devices, tensor views, ids.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace clusterkv {
inline namespace v0 {

class Executor;

enum class DType : std::uint8_t { kF32, kF16, kBF16, kI32 };

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) noexcept {
  return dtype == DType::kF16 || dtype == DType::kBF16 ? 2 : 4;
}

enum class Backend : std::uint8_t { kCpu, kCuda };

/// Where memory lies. `kPinned` is host memory that a CUDA device can read.
struct Device {
  enum Kind : std::uint8_t { kHost, kPinned, kCuda };
  Kind kind = kHost;
  int index = 0;
};

/// A borrowed view of the caller's tensor: nothing is owned, nothing is freed.
///
/// `stride` counts elements, so NHD and HND layouts are both plain views. Inputs are never written
/// through `data`. A default-made view is empty: rank 0 and no data.
struct TensorView {
  static constexpr int kMaxRank = 5;

  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device{};
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> stride{};

  [[nodiscard]] constexpr bool empty() const noexcept { return rank == 0; }
};

/// A dense row-major view of host memory: the last axis has stride 1.
/// `shape` holds at most TensorView::kMaxRank axes; further ones are ignored.
inline TensorView contiguous_view(const void* data, DType dtype,
                                  std::initializer_list<std::int64_t> shape) noexcept {
  TensorView view;
  view.data = const_cast<void*>(data);  // inputs are only read
  view.dtype = dtype;
  for (const std::int64_t extent : shape) {
    if (view.rank == TensorView::kMaxRank) break;
    view.shape[static_cast<std::size_t>(view.rank++)] = extent;
  }
  std::int64_t stride = 1;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    view.stride[static_cast<std::size_t>(axis)] = stride;
    stride *= view.shape[static_cast<std::size_t>(axis)];
  }
  return view;
}

/// Where a call's work is queued. On the CPU every call returns when its work is done.
struct Stream {
  Backend backend = Backend::kCpu;
  void* handle = nullptr;        ///< CUDA: a cudaStream_t; CPU: unused
  Executor* executor = nullptr;  ///< CPU: threads for this call; null: those of the object
};

/// Names a sequence of one cache. Never used twice by the same cache.
enum class SequenceId : std::int64_t {};
inline constexpr SequenceId kNoSequence{-1};

}  // namespace v0
}  // namespace clusterkv
