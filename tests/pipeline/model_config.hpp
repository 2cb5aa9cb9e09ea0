// SPDX-License-Identifier: Apache-2.0
//
// Random configurations for the model-based test, and which values of which switches were used.
#pragma once

#include <filesystem>
#include <initializer_list>
#include <map>
#include <set>
#include <string>

#include "clusterkv/config.hpp"
#include "tests/support/harness.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::testing {

/// Of each switch: the values that may be drawn, and those that were.
class Coverage {
 public:
  template <class T>
  T draw(Random& random, const std::string& name, std::initializer_list<T> values) {
    const T value = random.one_of(values);
    for (const T possible : values) possible_[name].insert(static_cast<int>(possible));
    used_[name].insert(static_cast<int>(value));
    drawn_[name] = static_cast<int>(value);
    return value;
  }
  void add(const Coverage& other) {
    for (const auto& [name, values] : other.possible_) {
      possible_[name].insert(values.begin(), values.end());
    }
    for (const auto& [name, values] : other.used_) {
      used_[name].insert(values.begin(), values.end());
    }
  }
  [[nodiscard]] bool is_complete() const { return !possible_.empty() && used_ == possible_; }
  /// What was not used yet.
  [[nodiscard]] std::string missing() const {
    std::string text;
    for (const auto& [name, values] : possible_) {
      for (const int value : values) {
        if (!used_.at(name).contains(value)) text += name + "=" + std::to_string(value) + " ";
      }
    }
    return text;
  }
  /// The newest value of each switch.
  [[nodiscard]] std::string newest() const {
    std::string text;
    for (const auto& [name, value] : drawn_) text += name + "=" + std::to_string(value) + " ";
    return text;
  }

 private:
  std::map<std::string, std::set<int>> possible_, used_;
  std::map<std::string, int> drawn_;
};

inline ModelShape draw_model(Random& random, Coverage& coverage) {
  const auto pick = [&]<class T>(const std::string& name, std::initializer_list<T> values) {
    return coverage.draw(random, name, values);
  };
  const int kv_heads = pick("kv_heads", {1, 2, 3});
  const int layers = pick("layers", {1, 2, 3});
  ModelShape model = small_model(layers, kv_heads * pick("group", {1, 2, 3, 9}), kv_heads,
                                 pick("head_dim", {64, 64, 64, 64, 64, 80, 96, 128, 256}));
  model.value_dim = pick("value_dim", {0, 0, 0, 64, 96, 256});
  model.kv_dtype = runs_on_cuda() ? pick("kv_dtype", {DType::kF16, DType::kBF16})
                                  : pick("kv_dtype", {DType::kF32, DType::kF16, DType::kBF16});
  if (pick("softmax_scale", {0, 1}) == 1) model.softmax_scale = 0.2F;
  model.logit_softcap = static_cast<float>(pick("logit_softcap", {0, 0, 2, 30}));
  if (pick("layer_ids", {0, 1}) == 1) {
    for (int layer = 0; layer < layers; ++layer) model.layers.push_back(3 * layer);
  }
  return model;
}

inline CacheConfig draw_config(Random& random, Coverage& coverage) {
  const auto pick = [&]<class T>(const std::string& name, std::initializer_list<T> values) {
    return coverage.draw(random, name, values);
  };
  CacheConfig config = CacheConfig::standard(draw_model(random, coverage));
  config.cluster.tokens_per_cluster = pick("tokens_per_cluster", {1, 3, 8});
  config.cluster.segment_tokens = pick("segment_tokens", {0, 32, 96});
  config.cluster.window_tokens = pick("window_tokens", {8, 24});
  config.cluster.min_window_clusters = pick("min_window_clusters", {1, 4});
  config.cluster.kmeans_iterations = pick("kmeans_iterations", {1, 4});
  config.cluster.sink_tokens = pick("sink_tokens", {0, 3, 16});
  config.cluster.seed = static_cast<std::uint64_t>(pick("seed", {0, 7}));
  config.cluster.metric = pick("metric", {Metric::kCosine, Metric::kL2, Metric::kInnerProduct});
  config.cluster.index_dtype =
      pick("index_dtype", {IndexDType::kInt8, IndexDType::kBF16, IndexDType::kF32});
  config.select.budget_tokens = pick("budget_tokens", {1, 7, 40});
  config.select.grouping = pick("grouping", {HeadGrouping::kShared, HeadGrouping::kPerQueryHead});
  config.select.tail = pick("tail", {Tail::kNone, Tail::kMean, Tail::kSecondMoment});
  config.select.tail_share = 1e-4F * static_cast<float>(pick("tail_share_e-4", {0, 1, 300}));
  config.select.dense_layers = pick("dense_layers", {0, 1, 4});
  config.select.dense_threshold = static_cast<float>(pick("dense_threshold", {0, 2}));
  config.store.residency = pick(
      "residency", {Residency::kAuto, Residency::kDevice, Residency::kHost, Residency::kHybrid});
  if (config.store.residency != Residency::kDevice && !runs_on_cuda() &&
      pick("cold_path", {0, 0, 1}) == 1) {
    config.store.cold_path = std::filesystem::temp_directory_path().string();
  }
  const int device_bytes = pick("device_bytes", {0, 60000, 3000000});
  const bool is_hybrid = config.store.residency == Residency::kHybrid;
  config.store.device_bytes = static_cast<std::size_t>(is_hybrid ? device_bytes + 1 : device_bytes);
  config.store.retention = pick("retention", {Retention::kLru, Retention::kRetainSteps});
  config.store.retain_steps = pick("retain_steps", {1, 3});
  config.check_finite = !runs_on_cuda() && pick("check_finite", {0, 1}) == 1;
  config.max_sequences = 4;
  config.max_tokens = pick("max_tokens", {500, 1500});
  return config;
}

}  // namespace clusterkv::testing
