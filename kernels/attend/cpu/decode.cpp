// SPDX-License-Identifier: Apache-2.0
//
// decode, merge_states (stage 5, attend). Contract and shapes: attend/attend.hpp.
//
// Mapping: one task per row and head; pieces as in attend_rows, merged as they are finished.
// Bound:   memory when dense.
#include <algorithm>
#include <cmath>

#include "kernels/attend/cpu/ops.hpp"
#include "kernels/attend/cpu/output.hpp"
#include "kernels/attend/cpu/softmax_state.hpp"
#include "kernels/common/dispatch.hpp"
#include "kernels/common/tensor_io.hpp"

namespace clusterkv::attend::CLUSTERKV_ISA {
namespace {

std::int64_t byte_offset(const TensorView& t, std::int64_t elements) {
  return elements * static_cast<std::int64_t>(size_of(t.dtype));
}

std::int32_t i32_at(const TensorView& t, std::int64_t offset) {
  return static_cast<const std::int32_t*>(t.data)[offset];
}

/// The tokens of one row and head.
class TokenFinder {
 public:
  TokenFinder(const DecodeParams& p, int row, int head, int kv_head)
      : p_(p), row_(row), head_(head), key_(p.key, row, kv_head), value_(p.value, row, kv_head) {
    if (!p.token_ids.empty()) {
      count_ = i32_at(p.counts, row * p.counts.stride[0] + head * p.counts.stride[1]);
    } else {
      count_ = p.lengths.empty() ? p.key.shape[1] : i32_at(p.lengths, row * p.lengths.stride[0]);
    }
    order_ = RowOrder(count_);
  }

  [[nodiscard]] std::int64_t count() const { return count_; }

  void operator()(std::int64_t i, const std::byte*& key, const std::byte*& value) const {
    const std::int64_t token = token_at(order_(i));
    key = key_.first + token * key_.step;
    value = value_.first + token * value_.step;
  }

 private:
  [[nodiscard]] std::int64_t token_at(std::int64_t i) const {
    const TensorView& ids = p_.token_ids;
    if (ids.empty()) return i;
    return i32_at(ids, row_ * ids.stride[0] + head_ * ids.stride[1] + i * ids.stride[2]);
  }
  /// A head's tokens in a tensor: bytes from one to the next.
  struct Tokens {
    Tokens(const TensorView& t, std::int64_t row, std::int64_t kv_head)
        : first(static_cast<const std::byte*>(t.data) +
                byte_offset(t, row * t.stride[0] + kv_head * t.stride[2])),
          step(byte_offset(t, t.stride[1])) {}
    const std::byte* first;
    std::int64_t step;
  };

  const DecodeParams& p_;
  std::int64_t row_;
  std::int64_t head_;
  Tokens key_;
  Tokens value_;
  std::int64_t count_;
  RowOrder order_{0};
};

/// Running total of one query head over pieces.
struct Total {
  float m = kMinusInfinity;
  float l = 0.0F;
  float o[kMaxHeadDim] = {};
};

/// Query heads [first_q_head, first_q_head + heads).
template <DType kDType, int kHeadDim, class ValueDim>
void decode_pass(const DecodeParams& p, int row, int first_q_head, int heads,
                 const TokenFinder& finder, ValueDim value_dim) {
  alignas(64) float query[kMaxPassHeads * kHeadDim];
  for (int g = 0; g < heads; ++g)
    load_tensor_row(p.query, row, first_q_head + g, query + g * kHeadDim);
  const Queries<kDType, kHeadDim> queries(query, heads);
  using State = SoftmaxState<kDType, kHeadDim, ValueDim>;
  const Softcap softcap(p.logit_softcap);
  Total total[kMaxPassHeads];
  const std::int64_t step = rows_per_piece(finder.count(), kCpuPieceRows);
  RowTile tile;
  if (finder.count() > 0) {
    tile.begin(finder.count(), finder);
    State::fetch_first(tile, value_dim);
  }
  for (std::int64_t piece = 0; piece < finder.count(); piece += step) {
    State state(queries, heads, p.softmax_scale * kLog2E, softcap, value_dim);
    const std::int64_t last = std::min(finder.count(), piece + step);
    for (std::int64_t first = piece; first < last;) {
      std::fill_n(tile.seen, heads, tile.count);
      state.add(tile);
      first += kTileRows;
      tile.advance(first, finder.count(), finder);
    }
    for (int g = 0; g < heads; ++g) {
      float o[ValueDim::kMost];
      state.copy_o(g, o);
      add_state(total[g].m, total[g].l, total[g].o, state.m(g), state.l(g), o, value_dim);
    }
  }
  for (int g = 0; g < heads; ++g) {
    write_output(p.out, p.lse, row, first_q_head + g, total[g].m, total[g].l, total[g].o);
  }
}

}  // namespace

void decode(const DecodeParams& p, int row, int head) {
  const int num_q_heads = static_cast<int>(p.query.shape[1]);
  const int num_kv_heads = static_cast<int>(p.key.shape[2]);
  const bool per_query_head = !p.token_ids.empty() && p.token_ids.shape[1] == num_q_heads;
  const int served = per_query_head ? 1 : num_q_heads / num_kv_heads;
  const int kv_head = per_query_head ? head / (num_q_heads / num_kv_heads) : head;
  const TokenFinder finder(p, row, head, kv_head);
  dispatch_row_dtype(p.key.dtype, [&](auto dtype) {
    dispatch_head_dim(static_cast<int>(p.key.shape[3]), [&](auto head_dim) {
      dispatch_value_dim<head_dim.value>(static_cast<int>(p.value.shape[3]), [&](auto value_dim) {
        for (int first = 0; first < served; first += kMaxPassHeads) {
          decode_pass<dtype.value, head_dim.value>(p, row, head * served + first,
                                                   std::min(kMaxPassHeads, served - first), finder,
                                                   value_dim);
        }
      });
    });
  });
}

void merge_states(const StateParams& p, std::int64_t row, int q_head) {
  Total total;
  const int value_dim = static_cast<int>(p.out.shape[2]);
  for (int part = 0; part < p.num_parts; ++part) {
    const TensorView& lse = p.lses[part];
    const float log_sum =
        static_cast<const float*>(lse.data)[row * lse.stride[0] + q_head * lse.stride[1]];
    if (!(log_sum > kMinusInfinity)) continue;
    float o[kMaxHeadDim];
    load_tensor_row(p.outs[part], row, q_head, o);
    add_state(total.m, total.l, total.o, log_sum * kLog2E, 1.0F, o, value_dim);
  }
  write_output(p.out, p.lse, row, q_head, total.m, total.l, total.o);
}

}  // namespace clusterkv::attend::CLUSTERKV_ISA
