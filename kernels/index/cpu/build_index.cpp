// SPDX-License-Identifier: Apache-2.0
//
// build_index (stage 2, index). Contract and shapes: index/index.hpp.
//
// Two passes: means and variances of each cluster, then the spreads, which need the variance of the
// whole segment. Sums run over rows in stored order.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/common/dispatch.hpp"
#include "kernels/common/numeric.hpp"
#include "kernels/index/cpu/ops.hpp"
#include "kernels/index/rules.hpp"

namespace clusterkv::index::CLUSTERKV_ISA {
namespace {

/// Rounds one row to the index dtype; returns its scale.
float store_index_row(IndexDType dtype, const float* x, int dim, std::byte* to) {
  if (dtype != IndexDType::kInt8) {
    dtype == IndexDType::kBF16 ? store_elements<DType::kBF16>(x, dim, to)
                               : store_elements<DType::kF32>(x, dim, to);
    return 1.0F;
  }
  float max_abs = 0.0F;
  for (int d = 0; d < dim; ++d) max_abs = std::abs(x[d]) > max_abs ? std::abs(x[d]) : max_abs;
  const float scale = int8_scale(max_abs);
  for (int d = 0; d < dim; ++d) to[d] = static_cast<std::byte>(to_int8(x[d], scale));
  return scale;
}

template <DType kDType, int kHeadDim, class ValueDim>
class Builder {
 public:
  Builder(const BuildParams& p, const SegmentSource& source, const SegmentTarget& target,
          ValueDim value_dim)
      : p_(p), source_(source), target_(target), value_dim_(value_dim) {}

  void run() {
    std::fill(profile_, profile_ + kHeadDim, 0.0F);
    std::fill(value_sum_, value_sum_ + value_dim_, 0.0F);
    int used = 0;
    for (int c = 0; c < p_.num_clusters; ++c) {
      if (p_.offset[c + 1] > p_.offset[c]) add_cluster(c, used++);
    }
    close_offsets(used);
    finish_profile();
    for (int u = 0; u < used; ++u) *spread(u) = mean_spread(u);
    clear_unused(used);
    *p_.index.record_used(source_.kv_head, target_.segment.record) = used;
  }

 private:
  void load(int i, float* key, float* value) const {
    const std::uint32_t row = paged_row(source_.live_pages, source_.first_live_row + p_.order[i]);
    const std::byte* from = p_.live.row(source_.kv_head, row);
    load_elements<kDType>(from, kHeadDim, key);
    if (value == nullptr) return;
    load_elements<kDType>(from + kHeadDim * size_of(kDType), value_dim_, value);
  }

  std::uint32_t block(int used) const { return target_.blocks[used / kBlockClusters]; }
  std::int64_t entry(int used) const {
    return p_.index.plane_block(source_.kv_head, block(used)) * kBlockClusters +
           used % kBlockClusters;
  }
  /// Where a cluster's mean of `dim` elements lies.
  std::size_t row(int used, int dim) const {
    return static_cast<std::size_t>(entry(used)) * bytes(dim);
  }
  std::size_t bytes(int dim) const {
    return static_cast<std::size_t>(dim) * IndexStore::element_bytes(p_.index.dtype);
  }
  std::uint32_t* offset(int used) const {
    return p_.index.block_offset(source_.kv_head, block(used)) + used % kBlockClusters;
  }
  float* spread(int used) const { return p_.index.spread + entry(used); }
  float* variance(int used) const { return p_.variance + std::int64_t{used} * kHeadDim; }

  void add_cluster(int c, int used) {
    const int begin = p_.offset[c];
    const int end = p_.offset[c + 1];
    const auto count = static_cast<float>(end - begin);
    float mean_key[kHeadDim] = {};
    float mean_value[ValueDim::kMost] = {};
    float key[kHeadDim];
    float value[ValueDim::kMost];
    for (int i = begin; i < end; ++i) {
      load(i, key, value);
      for (int d = 0; d < kHeadDim; ++d) mean_key[d] += key[d];
      for (int d = 0; d < value_dim_; ++d) mean_value[d] += value[d];
    }
    for (int d = 0; d < value_dim_; ++d) value_sum_[d] += mean_value[d];
    for (int d = 0; d < kHeadDim; ++d) mean_key[d] /= count;
    for (int d = 0; d < value_dim_; ++d) mean_value[d] /= count;
    add_variance(begin, end, mean_key, variance(used));
    write_cluster(used, begin, mean_key, mean_value);
  }

  void add_variance(int begin, int end, const float* mean, float* variance) {
    std::fill(variance, variance + kHeadDim, 0.0F);
    float key[kHeadDim];
    for (int i = begin; i < end; ++i) {
      load(i, key, nullptr);
      for (int d = 0; d < kHeadDim; ++d) {
        const float difference = key[d] - mean[d];
        variance[d] += difference * difference;
      }
    }
    for (int d = 0; d < kHeadDim; ++d) profile_[d] += variance[d];
    for (int d = 0; d < kHeadDim; ++d) variance[d] /= static_cast<float>(end - begin);
  }

  void write_cluster(int used, int begin, const float* mean_key, const float* mean_value) {
    const IndexDType dtype = p_.index.dtype;
    p_.index.centroid_scale[entry(used)] =
        store_index_row(dtype, mean_key, kHeadDim, p_.index.centroids + row(used, kHeadDim));
    p_.index.value_scale[entry(used)] = store_index_row(
        dtype, mean_value, value_dim_, p_.index.value_means + row(used, value_dim_));
    *offset(used) = static_cast<std::uint32_t>(target_.segment.first_row + begin);
  }

  /// A block's last offset is where its last cluster ends; unused clusters start there too.
  void close_offsets(int used) {
    const auto end = static_cast<std::uint32_t>(target_.segment.first_row + source_.num_tokens);
    for (int b = 0; b < target_.segment.num_blocks; ++b) {
      std::uint32_t* offsets = p_.index.block_offset(source_.kv_head, target_.blocks[b]);
      const int filled = std::clamp(used - b * kBlockClusters, 0, kBlockClusters);
      const bool is_last = used <= (b + 1) * kBlockClusters;
      const std::uint32_t next =
          is_last ? end : p_.index.block_offset(source_.kv_head, target_.blocks[b + 1])[0];
      std::fill(offsets + filled, offsets + kBlockClusters + 1, next);
    }
  }

  void finish_profile() {
    const auto count = static_cast<float>(source_.num_tokens);
    float* profile = p_.index.record_profile(source_.kv_head, target_.segment.record);
    float* value_sum = p_.index.record_value_sum(source_.kv_head, target_.segment.record);
    for (int d = 0; d < kHeadDim; ++d) {
      profile_[d] /= count;
      profile[d] = profile_[d];
    }
    std::copy(value_sum_, value_sum_ + value_dim_, value_sum);
  }

  float mean_spread(int used) const {
    float sum = 0.0F;
    int live = 0;
    for (int d = 0; d < kHeadDim; ++d) {
      if (!(profile_[d] > 0.0F)) continue;
      sum += variance(used)[d] / profile_[d];
      ++live;
    }
    return live > 0 ? sum / static_cast<float>(live) : 0.0F;
  }

  void clear_unused(int used) {
    for (int u = used; u < target_.segment.num_blocks * kBlockClusters; ++u) {
      std::memset(p_.index.centroids + row(u, kHeadDim), 0, bytes(kHeadDim));
      std::memset(p_.index.value_means + row(u, value_dim_), 0, bytes(value_dim_));
      p_.index.centroid_scale[entry(u)] = 0.0F;
      p_.index.value_scale[entry(u)] = 0.0F;
      *spread(u) = 0.0F;
    }
  }

  const BuildParams& p_;
  const SegmentSource& source_;
  const SegmentTarget& target_;
  ValueDim value_dim_;
  float profile_[kHeadDim];
  float value_sum_[ValueDim::kMost];
};

}  // namespace

void build_index(const BuildParams& params, const SegmentSource& source,
                 const SegmentTarget& target) {
  dispatch_row_dtype(params.live.dtype, [&](auto dtype) {
    dispatch_head_dim(params.live.head_dim, [&](auto head_dim) {
      dispatch_value_dim<head_dim.value>(params.live.value_dim, [&](auto value_dim) {
        Builder<dtype.value, head_dim.value, decltype(value_dim)>(params, source, target, value_dim)
            .run();
      });
    });
  });
}

void add_value_sum(const IndexStore& index, int kv_head, std::uint32_t record,
                   std::uint32_t previous_record) {
  float* sum = index.record_value_sum(kv_head, record);
  const float* previous = index.record_value_sum(kv_head, previous_record);
  for (int d = 0; d < index.value_dim; ++d) sum[d] += previous[d];
}

}  // namespace clusterkv::index::CLUSTERKV_ISA
