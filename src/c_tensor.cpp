// SPDX-License-Identifier: Apache-2.0
//
// DLTensors as views, and views as DLTensors.
#include <cstddef>
#include <type_traits>

#include "src/c_convert.hpp"

namespace clusterkv::c {
namespace {

// The bytes of DLPack's DLTensor, 64-bit pointers.
static_assert(sizeof(ckv_tensor) == 48 && offsetof(ckv_tensor, device) == 8 &&
              offsetof(ckv_tensor, ndim) == 16 && offsetof(ckv_tensor, dtype) == 20 &&
              offsetof(ckv_tensor, shape) == 24 && offsetof(ckv_tensor, strides) == 32 &&
              offsetof(ckv_tensor, byte_offset) == 40);

DType to_dtype(const ckv_data_type& type, const char* name) {
  const auto is = [&](int code, int bits) { return type.code == code && type.bits == bits; };
  if (type.lanes == 1) {
    if (is(CKV_TYPE_FLOAT, 32)) return DType::kF32;
    if (is(CKV_TYPE_FLOAT, 16)) return DType::kF16;
    if (is(CKV_TYPE_BFLOAT, 16)) return DType::kBF16;
    if (is(CKV_TYPE_INT, 32)) return DType::kI32;
  }
  fail<DTypeError>("{}: type code {} of {} bits and {} lanes, expected f32, f16, bf16 or i32", name,
                   type.code, type.bits, type.lanes);
}

ckv_data_type to_data_type(DType dtype) {
  switch (dtype) {
    case DType::kF32: return {CKV_TYPE_FLOAT, 32, 1};
    case DType::kF16: return {CKV_TYPE_FLOAT, 16, 1};
    case DType::kBF16: return {CKV_TYPE_BFLOAT, 16, 1};
    case DType::kI32: break;
  }
  return {CKV_TYPE_INT, 32, 1};
}

Device to_device(const ckv_device& device, const char* name) {
  switch (device.device_type) {
    case CKV_DEVICE_CPU: return {Device::kHost, device.device_id};
    case CKV_DEVICE_CUDA: return {Device::kCuda, device.device_id};
    // Managed memory is read by both sides at one address, as pinned memory is.
    case CKV_DEVICE_CUDA_HOST:
    case CKV_DEVICE_CUDA_MANAGED: return {Device::kPinned, device.device_id};
    default: break;
  }
  fail<ShapeError>("{}: device type {}, expected 1 (CPU), 2 (CUDA), 3 (pinned) or 13 (managed)",
                   name, device.device_type);
}

/// Without strides the tensor is dense and row-major. An extent that is no number of elements is left
/// for the check of the shape.
void fill_dense_strides(TensorView& view, const char* name) {
  std::int64_t stride = 1;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    const auto at = static_cast<std::size_t>(axis);
    view.stride[at] = stride;
    if (__builtin_mul_overflow(stride, view.shape[at], &stride)) {
      fail<ShapeError>("{}: more than 2^63 elements, expected fewer", name);
    }
  }
}

}  // namespace

TensorView to_view(const ckv_tensor* tensor, const char* name) {
  const ckv_tensor& t = not_null(tensor, name);
  if (t.ndim < 1 || t.ndim > TensorView::kMaxRank) {
    fail<ShapeError>("{}: rank {}, expected 1 .. {}", name, t.ndim, TensorView::kMaxRank);
  }
  if (t.shape == nullptr) fail<ArgumentError>("{}.shape: NULL, expected {} extents", name, t.ndim);
  TensorView view;
  view.dtype = to_dtype(t.dtype, name);
  view.device = to_device(t.device, name);
  view.rank = t.ndim;
  std::copy_n(t.shape, t.ndim, view.shape.begin());
  if (t.strides == nullptr) {
    fill_dense_strides(view, name);
  } else {
    std::copy_n(t.strides, t.ndim, view.stride.begin());
  }
  if (t.data == nullptr) return view;
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(t.data) + t.byte_offset;
  if (address % size_of(view.dtype) != 0) {
    fail<ShapeError>(
        "{}: data + byte_offset is not a multiple of {} bytes, expected whole elements", name,
        size_of(view.dtype));
  }
  // Added to a pointer, an offset that leaves its memory would be undefined.
  view.data = reinterpret_cast<void*>(address);  // NOLINT(performance-no-int-to-ptr)
  return view;
}

TensorView to_optional_view(const ckv_tensor* tensor, const char* name) {
  return tensor == nullptr ? TensorView{} : to_view(tensor, name);
}

AttentionOut to_out(const ckv_attention_out* out) {
  const ckv_attention_out& o = known(out, "out");
  return {to_view(o.out, "out"), to_optional_view(o.lse, "lse")};
}

AttendArgs to_attend_args(const ckv_attend_args* args) {
  const ckv_attend_args& a = known(args, "args");
  return {to_view(a.query, "query"), to_out(a.out), to_optional_view(a.sink_logits, "sink_logits")};
}

Selection to_selection(const ckv_selection* selection) {
  const ckv_selection& s = known(selection, "selection");
  return {to_view(&s.cluster_ids, "selection.cluster_ids"),
          to_view(&s.row_counts, "selection.row_counts")};
}

void fill_selection(const Selection& from, ckv_plan& plan, ckv_selection& to) {
  std::copy_n(from.cluster_ids.shape.begin(), 3, plan.shape);
  std::copy_n(from.cluster_ids.stride.begin(), 3, plan.stride);
  const auto tensor = [&](const TensorView& view) {
    ckv_tensor t{};
    t.data = view.data;
    t.device.device_type = device_type_of(view.device);
    t.device.device_id = view.device.index;
    t.ndim = view.rank;
    t.dtype = to_data_type(view.dtype);
    t.shape = plan.shape;
    t.strides = plan.stride;
    return t;
  };
  to.cluster_ids = tensor(from.cluster_ids);
  to.row_counts = tensor(from.row_counts);
}

}  // namespace clusterkv::c
