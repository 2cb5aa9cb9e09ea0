// SPDX-License-Identifier: Apache-2.0
//
// attend_rows, attend_tail, merge_partials (stage 5, attend). Contract and shapes: attend/attend.hpp.
//
// Mapping: one block of threads per plan row, selection head and piece, row pieces first; the last
//          one to finish merges all pieces in their order. Sizes come from the device, so one captured
//          launch serves every length; blocks without a piece return.
// Bound:   memory: rows and kept value means, each read once per eight query heads.
#include <cstdint>

#include "kernels/attend/cuda/attend_ops.hpp"
#include "kernels/attend/cuda/merge.cuh"
#include "kernels/attend/cuda/row_piece.cuh"
#include "kernels/attend/cuda/tail_piece.cuh"
#include "kernels/attend/row_finder.hpp"
#include "kernels/attend/rules.hpp"
#include "kernels/common/dispatch.hpp"

namespace clusterkv::CLUSTERKV_DEVICE {
namespace {

using attend::AttendParams;
using attend::MergeParams;

/// Addresses of the rows of one plan row and selection head, 16-bit elements.
template <int kDim>
struct RowAddresses {
  attend::RowFinder rows;
  DimOf<kDim> head_dim;

  __device__ RowAddress operator()(std::int64_t i) const {
    const std::byte* key = rows.find(i);
    return {key, key + 2 * static_cast<std::size_t>(head_dim)};
  }
};

template <int kDim>
struct AttendShared {
  union {
    PieceShared<kDim> rows;
    TailShared<kDim> tail;
  };
  int is_last;
};

/// kDim: as of RowPiece.
template <DType kDType, int kDim>
class Attender {
 public:
  __device__ Attender(const MergeParams& params, AttendShared<kDim>& shared)
      : params_(params),
        p_(params.attend),
        shared_(shared),
        number_(static_cast<int>(blockIdx.z)),
        head_(static_cast<int>(blockIdx.y)),
        row_(p_.rows[number_]),
        served_(attend::num_served(p_, number_)),
        group_(row_.group(p_.num_q_heads, p_.num_kv_heads)),
        head_dim_(p_.live.head_dim),
        value_dim_(p_.live.value_dim),
        finder_{{p_, number_, head_}, head_dim_},
        row_pieces_(attend::num_row_pieces(finder_.rows.count())),
        has_tail_(p_.tail != Tail::kNone && !p_.all_rows && !row_.everything),
        tail_pieces_(has_tail_ ? attend::num_tail_pieces(row_.num_blocks) : 0) {}

  __device__ void run(std::uint32_t* arrived) {
    const int row_work = params_.rows_part ? row_pieces_ : 0;
    const int work = row_work + (params_.tail_part ? tail_pieces_ : 0);
    const auto item = static_cast<int>(blockIdx.x);
    if (item >= (work > 0 ? work : 1)) return;  // the first block merges, be there nothing at all
    for (int first = 0; first < served_ && item < work; first += kMaxPassHeads) {
      const int heads = min(kMaxPassHeads, served_ - first);
      item < row_work ? attend_rows(item, first, heads)
                      : attend_tail(item - row_work, first, heads);
    }
    std::uint32_t* counter = arrived + p_.lists.list(number_, head_);
    if (!arrive_last(counter, work > 0 ? work : 1, shared_.is_last)) return;
    for (int g = 0; g < served_; ++g) merge(head_ * served_ + g);
  }

 private:
  __device__ void attend_rows(int piece, int first, int heads) {
    const int q_head = head_ * served_ + first;
    const float* query =
        p_.query + (std::int64_t{row_.query_row} * p_.num_q_heads + q_head) * head_dim_;
    RowPiece<kDType, kDim, RowAddresses<kDim>> rows(
        shared_.rows, finder_, query, heads, {p_.softmax_scale * kLog2E, Softcap(p_.logit_softcap)},
        head_dim_, value_dim_);
    rows.limit([&](int g) {
      return attend::num_seen_rows(p_, row_, finder_.rows.count(), (q_head + g) % group_);
    });
    const std::int64_t step = attend::rows_per_piece(finder_.rows.count());
    const std::int64_t last = (piece + 1) * step;
    rows.run(piece * step, last < finder_.rows.count() ? last : finder_.rows.count());
    for (int i = static_cast<int>(threadIdx.x); i < heads * value_dim_; i += kAttendThreads) {
      const int g = i / value_dim_;
      const auto state = rows.read(g, i % value_dim_);
      p_.partials.output(number_, q_head + g, piece)[i % value_dim_] = state.o;
      if (i % value_dim_ == 0) {
        p_.partials.head(number_, q_head + g, piece) = {state.m, state.l, 0.0F, 0};
      }
    }
    __syncthreads();  // the next pass writes the shared memory
  }

  __device__ void attend_tail(int piece, int first, int heads) {
    TailPiece<kDim> tail(p_, shared_.tail, number_, head_);
    tail.run(piece, first, heads);
    const int slot = row_pieces_ + piece;
    for (int i = static_cast<int>(threadIdx.x); i < heads * value_dim_; i += kAttendThreads) {
      const int q_head = head_ * served_ + first + i / value_dim_;
      p_.partials.output(number_, q_head, slot)[i % value_dim_] =
          tail.output(i / value_dim_, i % value_dim_);
      if (i % value_dim_ != 0) continue;
      attend::PartialHead partial = tail.partial(first, i / value_dim_);
      if (first + i / value_dim_ > 0) partial.kept = 0;  // counted once for all heads
      p_.partials.head(number_, q_head, slot) = partial;
    }
    __syncthreads();  // the next pass writes the shared memory
  }

  __device__ void merge(int q_head) {
    const int kv_head = q_head / group_;
    const attend::OutputHead to = attend::output_head(p_, row_, q_head);
    for (int d = static_cast<int>(threadIdx.x); d < value_dim_; d += kAttendThreads) {
      ElementState state;
      if (params_.rows_part) {
        for (int piece = 0; piece < row_pieces_; ++piece) add(state, q_head, piece, d);
      }
      const ElementState exact = state;
      std::int64_t kept = 0;
      if (params_.tail_part && has_tail_) {
        float rest = 0.0F;
        for (int piece = row_pieces_; piece < row_pieces_ + tail_pieces_; ++piece) {
          add(state, q_head, piece, d);
          rest = rest + p_.partials.head(number_, q_head, piece).rest;
          kept += p_.partials.head(number_, q_head, piece).kept;
        }
        if (tail_pieces_ > 0) {
          const float mean = value_mean(kv_head, d);
          state.add(p_.partials.head(number_, q_head, row_pieces_).m, rest, rest * mean);
        }
      }
      if (d == 0) write_counts(q_head, state, exact, kept);
      if (!params_.sink_logits.empty() && state.l > 0.0F) {
        state.add(attend::sink_m(params_, to.q_head), 1.0F, 0.0F);
      }
      write_output(params_.out, params_.lse, to.row, to.q_head, d, state);
    }
  }

  __device__ void add(ElementState& state, int q_head, int piece, int d) const {
    const attend::PartialHead& part = p_.partials.head(number_, q_head, piece);
    state.add(part.m, part.l, p_.partials.output(number_, q_head, piece)[d]);
  }

  /// Mean of all clustered values: where the mass goes whose own means are not read.
  __device__ float value_mean(int kv_head, int d) const {
    const std::uint32_t record = row_.segments[row_.num_segments - 1].record;
    return p_.index.record_value_sum(kv_head, record)[d] / static_cast<float>(row_.num_stored);
  }

  __device__ void write_counts(int q_head, const ElementState& state, const ElementState& exact,
                               std::int64_t kept) {
    if (params_.kept != nullptr && q_head % served_ == 0) {
      params_.kept[p_.lists.list(number_, head_)] = kept;
    }
    if (params_.tail_mass == nullptr) return;
    const float part = exact.l > 0.0F ? exact.l * exp2_fixed(exact.m - state.m) : 0.0F;
    params_.tail_mass[std::int64_t{number_} * p_.num_q_heads * p_.query_tokens + q_head] =
        state.l > 0.0F ? 1.0F - part / state.l : 0.0F;
  }

  const MergeParams& params_;
  const AttendParams& p_;
  AttendShared<kDim>& shared_;
  int number_;
  int head_;
  const SequenceView& row_;
  int served_;
  int group_;
  DimOf<kDim> head_dim_;
  DimOf<kDim> value_dim_;
  RowAddresses<kDim> finder_;
  int row_pieces_;
  bool has_tail_;
  int tail_pieces_;
};

template <DType kDType, int kDim>
__global__ __launch_bounds__(kAttendThreads, 2) void attend_kernel(MergeParams p,
                                                                   std::uint32_t* arrived) {
  if (p.attend.rows[blockIdx.z].query_row < 0) return;
  Attender<kDType, kDim>(p, dynamic_shared<AttendShared<kDim>>()).run(arrived);
}

}  // namespace

void attend(const MergeParams& p, std::uint32_t* arrived, const PlanShape& shape) {
  if (shape.num_rows == 0) return;
  const bool may_have_tail = p.tail_part && p.attend.tail != Tail::kNone && !p.attend.all_rows;
  const int pieces =
      attend::kMaxRowPieces + (may_have_tail ? attend::max_tail_pieces(shape.max_blocks) : 0);
  dispatch_value<DType::kF16, DType::kBF16>("kv_dtype", p.attend.live.dtype, [&](auto dtype) {
    dispatch_dims(p.attend.live.head_dim, p.attend.live.value_dim, [&](auto dim) {
      launch(attend_kernel<dtype.value, dim.value>,
             {.grid = {static_cast<unsigned>(pieces),
                       static_cast<unsigned>(p.attend.lists.selection_heads),
                       static_cast<unsigned>(shape.num_rows)},
              .block = {kAttendThreads},
              .shared_bytes = shared_size<AttendShared<dim.value>>(),
              .stream = shape.stream},
             p, arrived);
    });
  });
}

}  // namespace clusterkv::CLUSTERKV_DEVICE
