// SPDX-License-Identifier: Apache-2.0
#include "clusterkv/types.hpp"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <type_traits>

#include "clusterkv/config.hpp"
#include "clusterkv/kv_cache.hpp"
#include "clusterkv/version.hpp"

namespace clusterkv {
namespace {

TEST(Types, SizesOfElements) {
  EXPECT_EQ(size_of(DType::kF32), 4U);
  EXPECT_EQ(size_of(DType::kI32), 4U);
  EXPECT_EQ(size_of(DType::kF16), 2U);
  EXPECT_EQ(size_of(DType::kBF16), 2U);
}

TEST(Types, DefaultViewIsEmpty) {
  const TensorView view;
  EXPECT_TRUE(view.empty());
  EXPECT_EQ(view.data, nullptr);
  EXPECT_EQ(view.device.kind, Device::kHost);
}

TEST(Types, ContiguousViewIsRowMajor) {
  const float data[24] = {};
  const TensorView view = contiguous_view(data, DType::kF32, {2, 3, 4});
  EXPECT_FALSE(view.empty());
  EXPECT_EQ(view.data, data);
  EXPECT_EQ(view.rank, 3);
  EXPECT_EQ(view.shape, (std::array<std::int64_t, 5>{2, 3, 4, 0, 0}));
  EXPECT_EQ(view.stride, (std::array<std::int64_t, 5>{12, 4, 1, 0, 0}));
}

TEST(Types, ContiguousViewHoldsAtMostFiveAxes) {
  const TensorView view = contiguous_view(nullptr, DType::kF16, {1, 2, 3, 4, 5, 6});
  EXPECT_EQ(view.rank, TensorView::kMaxRank);
  EXPECT_EQ(view.shape, (std::array<std::int64_t, 5>{1, 2, 3, 4, 5}));
  EXPECT_EQ(view.stride[0], 120);
}

TEST(Types, PlansAndCachesMoveButDoNotCopy) {
  EXPECT_FALSE(std::is_copy_constructible_v<DecodePlan>);
  EXPECT_TRUE(std::is_nothrow_move_constructible_v<DecodePlan>);
  EXPECT_FALSE(std::is_copy_constructible_v<ClusterKVCache>);
  EXPECT_TRUE(std::is_nothrow_move_constructible_v<ClusterKVCache>);
  EXPECT_TRUE(std::is_nothrow_move_assignable_v<ClusterKVCache>);
}

TEST(Types, DefaultPlanHasNoRows) {
  const DecodePlan plan;
  EXPECT_EQ(plan.num_rows(), 0);
  EXPECT_EQ(plan.num_new_tokens(), 0);
  EXPECT_EQ(plan.num_query_tokens(), 0);
}

TEST(Presets, StandardIsTheDefault) {
  ModelShape model;
  model.num_layers = 3;
  const CacheConfig made = CacheConfig::standard(model);
  EXPECT_EQ(made.model.num_layers, 3);
  EXPECT_EQ(made.cluster.tokens_per_cluster, 8);
  EXPECT_EQ(made.cluster.segment_tokens, 2048);
  EXPECT_EQ(made.cluster.window_tokens, 320);
  EXPECT_EQ(made.cluster.kmeans_iterations, 4);
  EXPECT_EQ(made.cluster.sink_tokens, 16);
  EXPECT_EQ(made.cluster.seed, 0U);
  EXPECT_EQ(made.cluster.index_dtype, IndexDType::kInt8);
  EXPECT_EQ(made.select.budget_tokens, 512);
  EXPECT_EQ(made.select.grouping, HeadGrouping::kShared);
  EXPECT_EQ(made.select.tail, Tail::kSecondMoment);
  EXPECT_FLOAT_EQ(made.select.tail_share, 1e-4F);
  EXPECT_EQ(made.select.dense_layers, 2);
  EXPECT_FLOAT_EQ(made.select.dense_threshold, 1.5F);
  EXPECT_EQ(made.store.retention, Retention::kLru);
}

TEST(Presets, PaperIsThePapers) {
  const CacheConfig made = CacheConfig::paper({});
  EXPECT_EQ(made.cluster.tokens_per_cluster, 80);
  EXPECT_EQ(made.cluster.segment_tokens, 0);
  EXPECT_EQ(made.cluster.window_tokens, 320);
  EXPECT_EQ(made.cluster.min_window_clusters, 4);
  EXPECT_EQ(made.cluster.kmeans_iterations, 10);
  EXPECT_EQ(made.cluster.seed, 1U);
  EXPECT_EQ(made.cluster.metric, Metric::kCosine);
  EXPECT_EQ(made.cluster.index_dtype, IndexDType::kF32);
  EXPECT_EQ(made.select.budget_tokens, 1024);
  EXPECT_EQ(made.select.grouping, HeadGrouping::kPerQueryHead);
  EXPECT_EQ(made.select.tail, Tail::kNone);
  EXPECT_EQ(made.select.dense_layers, 2);
  EXPECT_EQ(made.store.retention, Retention::kRetainSteps);
  EXPECT_EQ(made.store.retain_steps, 1);
}

TEST(Version, IsThatOfTheHeaders) {
  const std::string wanted = std::to_string(CLUSTERKV_VERSION_MAJOR) + "." +
                             std::to_string(CLUSTERKV_VERSION_MINOR) + "." +
                             std::to_string(CLUSTERKV_VERSION_PATCH);
  EXPECT_EQ(version(), wanted);
}

}  // namespace
}  // namespace clusterkv
