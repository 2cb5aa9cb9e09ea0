// SPDX-License-Identifier: Apache-2.0
#include "src/runtime/check.hpp"

#include <algorithm>
#include <string>

namespace clusterkv::runtime {
namespace {

std::string shape_text(const std::int64_t* extents, std::size_t rank) {
  std::string text = "[";
  for (std::size_t axis = 0; axis < rank; ++axis) {
    if (axis > 0) text += ", ";
    text += extents[axis] < 0 ? "*" : std::to_string(extents[axis]);
  }
  return text + "]";
}

void check_shape(const TensorView& tensor, const TensorRule& rule) {
  const auto rank = static_cast<int>(rule.shape.size());
  bool matches = tensor.rank == rank;
  bool empty = false;
  for (int axis = 0; matches && axis < rank; ++axis) {
    const std::int64_t wanted = rule.shape.begin()[axis];
    const std::int64_t extent = tensor.shape[static_cast<std::size_t>(axis)];
    matches = extent >= 0 && (wanted < 0 || extent == wanted);
    empty = empty || extent == 0;
  }
  if (!matches) {
    const auto shown = static_cast<std::size_t>(std::clamp(tensor.rank, 0, TensorView::kMaxRank));
    fail<ShapeError>("{}: shape {} of rank {}, expected {}", rule.name,
                     shape_text(tensor.shape.data(), shown), tensor.rank,
                     shape_text(rule.shape.begin(), rule.shape.size()));
  }
  if (!empty && tensor.data == nullptr) fail<ShapeError>("{}: data is null", rule.name);
}

}  // namespace

const char* dtype_name(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF32: return "f32";
    case DType::kF16: return "f16";
    case DType::kBF16: return "bf16";
    case DType::kI32: return "i32";
  }
  return "unknown";
}

void check_tensor(const TensorView& tensor, const TensorRule& rule, Backend backend) {
  check_shape(tensor, rule);
  if (std::find(rule.dtypes.begin(), rule.dtypes.end(), tensor.dtype) == rule.dtypes.end()) {
    std::string expected;
    for (const DType dtype : rule.dtypes) {
      expected += expected.empty() ? "" : " or ";
      expected += dtype_name(dtype);
    }
    fail<DTypeError>("{}: dtype {}, expected {}", rule.name, dtype_name(tensor.dtype), expected);
  }
  if (backend == Backend::kCpu && tensor.device.kind == Device::kCuda) {
    fail<ShapeError>("{}: lies on a CUDA device, expected host memory", rule.name);
  }
  if (backend == Backend::kCuda && tensor.device.kind == Device::kHost) {
    fail<ShapeError>("{}: lies in host memory, expected a CUDA device or pinned memory", rule.name);
  }
  const std::int64_t last = tensor.stride[static_cast<std::size_t>(tensor.rank - 1)];
  if (rule.last_stride == LastStride::kOne && last != 1) {
    fail<ShapeError>("{}: stride {} along the last axis, expected 1", rule.name, last);
  }
}

}  // namespace clusterkv::runtime
