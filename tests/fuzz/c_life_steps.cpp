// SPDX-License-Identifier: Apache-2.0
//
// The steps of a CLife.
#include <algorithm>
#include <cstring>
#include <limits>

#include "tests/fuzz/c_life.hpp"
#include "tests/fuzz/require.hpp"

namespace clusterkv::fuzz {
namespace {

constexpr int kHeadDim = 64;

template <class T>
T sized() {
  T it{};
  it.struct_size = sizeof it;
  return it;
}

}  // namespace

/// [rows, heads, head_dim] of floats, now and then spoilt.
ckv_tensor* CLife::tensor(Tensor& to, std::int64_t rows, std::int64_t heads) {
  to.data.resize(static_cast<std::size_t>(rows * heads * kHeadDim) + 1);
  const float scale = bytes_.pick({1.0F, 0.0F, 100.0F, std::numeric_limits<float>::infinity()});
  const unsigned seed = bytes_.byte();
  for (std::size_t i = 0; i < to.data.size(); ++i) {
    to.data[i] = static_cast<float>((i * (2 * seed + 1) * 2654435761U >> 20) % 101) - 50.0F;
    if (i % 7 == 0) to.data[i] *= scale;
  }
  const std::int64_t shape[] = {rows, heads, kHeadDim, 1, 1, 1};
  std::copy_n(shape, 6, to.shape);
  const std::int64_t strides[] = {heads * kHeadDim, kHeadDim, 1, 1, 1, 1};
  std::copy_n(strides, 6, to.strides);
  to.view = {};
  to.view.data = to.data.data();
  to.view.device.device_type = CKV_DEVICE_CPU;
  to.view.ndim = 3;
  to.view.dtype = {CKV_TYPE_FLOAT, 32, 1};
  to.view.shape = to.shape;
  to.view.strides = bytes_.one_in(2) ? to.strides : nullptr;
  if (!bytes_.one_in(32)) return &to.view;
  switch (bytes_.upto(7)) {
    case 0: to.view.ndim = bytes_.upto(7) - 1; break;
    case 1: to.shape[bytes_.upto(2)] = bytes_.number(); break;
    case 2: to.view.dtype = {bytes_.byte(), bytes_.byte(), bytes_.byte()}; break;
    case 3: to.view.device.device_type = bytes_.byte(); break;
    case 4: to.view.byte_offset = bytes_.byte() % 5U; break;
    case 5: to.view.data = nullptr; break;
    case 6: to.view.shape = nullptr; break;
    default: return nullptr;
  }
  return &to.view;
}

ckv_step_row CLife::draw_row() {
  auto row = sized<ckv_step_row>();
  row.sequence = drawn_sequence();
  row.num_new_tokens = bytes_.one_in(3) ? 1 + bytes_.upto(40) : 1;
  row.num_query_tokens = bytes_.one_in(4) ? bytes_.upto(3) : 1;
  row.phase = bytes_.upto(2);
  row.budget_tokens = bytes_.one_in(4) ? bytes_.byte() : 0;
  if (bytes_.one_in(32)) row.phase = bytes_.number();
  if (bytes_.one_in(32)) row.num_new_tokens = bytes_.number();
  return row;
}

/// plan() or update(); lengths are those of what it took.
void CLife::step() {
  ckv_step_row rows[3];
  const int count = 1 + bytes_.upto(2);
  for (int i = 0; i < count; ++i) rows[i] = draw_row();
  const ckv_stats before = stats();
  ckv_status status = CKV_OK;
  if (plan_ == nullptr) {
    auto limits = sized<ckv_plan_limits>();
    limits.max_rows = 3;
    limits.max_new_tokens = 130;
    limits.max_budget_tokens = 80;
    limits.max_query_tokens = bytes_.pick({4, 0, 1, 17});
    auto needs = sized<ckv_memory_needs>();
    if (check(ckv_cache_memory_needs(&config_, CKV_BACKEND_CPU, &limits, &needs, &error_)) !=
        CKV_OK) {
      return;
    }
    workspace_.resize(needs.workspace_bytes + 64);
    auto workspace = sized<ckv_workspace>();
    const auto address = reinterpret_cast<std::uintptr_t>(workspace_.data());
    workspace.data = workspace_.data() + (64 - address % 64) % 64;
    workspace.bytes = needs.workspace_bytes;
    const ckv_plan_args args{sizeof args, rows, static_cast<size_t>(count), &limits, &workspace};
    status = check(ckv_cache_plan(cache_, &args, nullptr, &plan_, &error_));
  } else {
    status =
        check(ckv_cache_update(cache_, plan_, rows, static_cast<size_t>(count), nullptr, &error_));
  }
  if (status != CKV_OK) return check_unchanged(before);
  std::int64_t tokens = 0, queries = 0;
  for (int i = 0; i < count; ++i) {
    tokens += rows[i].num_new_tokens;
    queries += rows[i].num_query_tokens;
    if (rows[i].sequence != CKV_NO_SEQUENCE)
      lengths_.at(rows[i].sequence) += rows[i].num_new_tokens;
  }
  layers(static_cast<int>(tokens), static_cast<int>(queries));
}

/// The layers of a step, some of them left out, in any order.
void CLife::layers(int tokens, int queries) {
  for (int i = 0; i < config_.num_layers; ++i) {
    auto call = sized<ckv_layer_call>();
    call.plan = plan_;
    call.layer = bytes_.one_in(8) ? bytes_.upto(3) - 1 : i;
    Tensor key, value;
    const ckv_tensor* k = tensor(key, tokens, config_.num_kv_heads);
    const ckv_tensor* v = tensor(value, tokens, config_.num_kv_heads);
    ckv_status status = CKV_OK;
    do {
      if (bytes_.one_in(8)) fail_region_ = bytes_.upto(2);
      const ckv_stats before = stats();
      if (bytes_.one_in(32)) break;  // left out
      status = check(ckv_cache_append(cache_, &call, k, v, &error_));
      if (status != CKV_OK) check_unchanged(before);
    } while (status == CKV_CALLBACK_ERROR);
    if (bytes_.one_in(2)) attend(call, queries);
    if (bytes_.one_in(3)) use_choice(call, queries);
  }
}

void CLife::attend(const ckv_layer_call& call, int queries) {
  Tensor query, out;
  auto result = sized<ckv_attention_out>();
  auto args = sized<ckv_attend_args>();
  args.query = tensor(query, queries, config_.num_q_heads);
  result.out = tensor(out, queries, config_.num_q_heads);
  args.out = &result;
  if (bytes_.one_in(8)) fail_region_ = bytes_.upto(3);
  check(ckv_cache_attend(cache_, &call, &args, &error_));
}

/// A choice, changed in places, is attended to and listed: errors or numbers, and no token that is not
/// there.
void CLife::use_choice(const ckv_layer_call& call, int queries) {
  Tensor query, out;
  auto choice = sized<ckv_selection>();
  const ckv_tensor* q = tensor(query, queries, config_.num_q_heads);
  if (check(ckv_cache_select(cache_, &call, q, &choice, &error_)) != CKV_OK) return;
  const std::int64_t* shape = choice.cluster_ids.shape;
  const std::int64_t entries = shape[0] * shape[1] * shape[2];
  auto* ids = static_cast<std::int32_t*>(choice.cluster_ids.data);
  auto* counts = static_cast<std::int32_t*>(choice.row_counts.data);
  for (int i = bytes_.one_in(2) ? bytes_.upto(3) : 0; i > 0 && entries > 0; --i) {
    const std::int64_t at = bytes_.byte() % entries;
    (bytes_.one_in(2) ? ids : counts)[at] =
        bytes_.one_in(8) ? bytes_.number() : bytes_.upto(20) - 1;
  }
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(shape[0] * shape[1] * 300));
  std::vector<std::int32_t> lengths(static_cast<std::size_t>(shape[0] * shape[1]));
  std::int64_t token_shape[] = {shape[0], shape[1], 300}, length_shape[] = {shape[0], shape[1]};
  ckv_tensor to = choice.cluster_ids, sizes = choice.cluster_ids;
  to.data = tokens.data(), to.shape = token_shape, to.strides = nullptr;
  sizes.data = lengths.data(), sizes.shape = length_shape, sizes.strides = nullptr, sizes.ndim = 2;
  if (check(ckv_cache_token_ids(cache_, &call, &choice, &to, &sizes, &error_)) == CKV_OK) {
    for (const std::int32_t token : tokens) require(token >= -1 && token < 300, "no such token");
  }
  auto result = sized<ckv_attention_out>();
  auto args = sized<ckv_attend_args>();
  args.query = q;
  result.out = tensor(out, queries, config_.num_q_heads);
  args.out = &result;
  check(ckv_cache_attend_selected(cache_, &call, &choice, &args, &error_));
}

void CLife::read_rows() {
  auto range = sized<ckv_row_range>();
  range.sequence = drawn_sequence();
  range.layer = bytes_.upto(2);
  range.first = bytes_.byte();
  range.last = range.first + bytes_.upto(60) - 1;
  Tensor key, value;
  const std::int64_t rows = std::max<std::int64_t>(0, range.last - range.first);
  const ckv_tensor* k = tensor(key, rows, config_.num_kv_heads);
  check(ckv_cache_read_rows(cache_, &range, k, tensor(value, rows, config_.num_kv_heads), nullptr,
                            &error_));
}

}  // namespace clusterkv::fuzz
