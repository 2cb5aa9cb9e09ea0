// SPDX-License-Identifier: Apache-2.0
//
// Errors and hit rates on recorded attention, measured without the tool's code, inside bands around
// the figures of an independent implementation.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "tests/support/trace.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kQueries = 256;
constexpr int kSeeds = 9;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kIsSlow = true;
#else
constexpr bool kIsSlow = false;
#endif

const std::vector<int> kBudgets = {128, 256, 512, 1024};

/// Errors of seeds 1 .. 9 at these budgets, from make_paper_figures.py: NumPy, same starts. The same
/// as of `clusterkv replay --preset paper --seed N`.
constexpr double kPaperErrors[kSeeds][4] = {
    {0.086741, 0.050890, 0.029052, 0.011902}, {0.203284, 0.093866, 0.036810, 0.013160},
    {0.102564, 0.054448, 0.027971, 0.012693}, {0.094774, 0.052462, 0.030551, 0.012908},
    {0.249273, 0.100396, 0.035487, 0.014077}, {0.082526, 0.049526, 0.028491, 0.013390},
    {0.104634, 0.050794, 0.027896, 0.011912}, {0.102942, 0.058569, 0.029165, 0.012119},
    {0.251821, 0.102916, 0.035085, 0.013807},
};

struct Recording {
  explicit Recording(RecordedLayer recorded)
      : rows(std::move(recorded)), full(full_attention(rows, kQueries)) {}
  Recording(const std::string& path, int layer) : Recording(load_recorded_layer(path, layer)) {}
  RecordedLayer rows;
  std::vector<double> full;
};

const Recording& embedded() {
  static const Recording recording(CLUSTERKV_DATA_DIR "/smollm2-135m-genesis-4k-layer9.safetensors",
                                   9);
  return recording;
}

/// The 8k trace; empty where it is not at hand.
std::string longer_trace() {
  const char* folder = std::getenv("CLUSTERKV_TRACES_DIR");
  if (folder == nullptr) return "";
  const std::string path = std::string(folder) + "/smollm2-135m-genesis-8k.safetensors";
  return std::filesystem::exists(path) ? path : "";
}

/// Layers of the 8k trace, read once.
const Recording& longer(int layer) {
  static std::map<int, Recording> recordings;
  return recordings.try_emplace(layer, longer_trace(), layer).first->second;
}

std::vector<ReplayResult> replay(const Recording& recording, const CacheConfig& config,
                                 const std::vector<int>& budgets) {
  return replay_recorded(recording.rows, config, budgets, recording.full, kQueries);
}

/// [seed - 1][budget]
std::vector<std::vector<double>> paper_errors(const Recording& recording,
                                              const std::vector<int>& budgets) {
  std::vector<std::vector<double>> errors;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    CacheConfig config = CacheConfig::paper(recording.rows.model(DType::kF16));
    config.cluster.seed = static_cast<std::uint64_t>(seed);
    errors.emplace_back();
    for (const ReplayResult& result : replay(recording, config, budgets)) {
      errors.back().push_back(result.error_mean);
    }
  }
  return errors;
}

/// Median over the seeds; prints it and the range.
double median(const std::vector<std::vector<double>>& errors, std::size_t budget) {
  std::vector<double> sorted;
  for (const auto& of_seed : errors) sorted.push_back(of_seed[budget]);
  std::sort(sorted.begin(), sorted.end());
  std::printf("median %.4f of %.4f .. %.4f\n", sorted[kSeeds / 2], sorted.front(), sorted.back());
  return sorted[kSeeds / 2];
}

TEST(Recorded, StandardPresetErrsAsSpecified) {
  const std::array<double, 4> figures = {.0268, .0168, .0099, .0044};
  const auto results =
      replay(embedded(), CacheConfig::standard(embedded().rows.model(DType::kF16)), kBudgets);
  for (std::size_t b = 0; b < kBudgets.size(); ++b) {
    std::printf("budget %4d: error %.4f, hit rate %.3f\n", kBudgets[b], results[b].error_mean,
                results[b].hit_rate);
    EXPECT_NEAR(results[b].error_mean, figures[b], 0.08 * figures[b]) << "budget " << kBudgets[b];
    EXPECT_GT(results[b].hit_rate, 0.45);
    EXPECT_LT(results[b].hit_rate, 0.80);
  }
}

TEST(Recorded, StandardPresetErrsAsSpecifiedOnTheLongerTrace) {
  if (kIsSlow) GTEST_SKIP() << "too slow with a sanitizer";
  if (longer_trace().empty()) GTEST_SKIP() << "the 8k trace is not at hand (CLUSTERKV_TRACES_DIR)";
  for (const auto& [layer, figure] : {std::pair{9, .0229}, std::pair{29, .0198}}) {
    const CacheConfig config = CacheConfig::standard(longer(layer).rows.model(DType::kF16));
    EXPECT_NEAR(replay(longer(layer), config, {256})[0].error_mean, figure, 0.08 * figure)
        << "layer " << layer;
  }
}

/// As if the model had a soft cap, which most of its largest logits exceed, or few: spreads still correct the
/// mass of mean keys (docs/decisions/010).
TEST(Recorded, StandardPresetErrsLittleUnderASoftcap) {
  for (const float softcap : {5.0F, 20.0F, 50.0F}) {
    RecordedLayer rows = embedded().rows;
    rows.logit_softcap = softcap;
    const Recording capped(std::move(rows));
    CacheConfig config = CacheConfig::standard(capped.rows.model(DType::kF16));
    const auto results = replay(capped, config, kBudgets);
    config.select.tail = Tail::kMean;
    const auto of_means = replay(capped, config, kBudgets);
    for (std::size_t b = 0; b < kBudgets.size(); ++b) {
      std::printf("softcap %2.0f, budget %4d: error %.5f, with a tail of means %.5f\n",
                  double{softcap}, kBudgets[b], results[b].error_mean, of_means[b].error_mean);
      EXPECT_LT(results[b].error_mean, of_means[b].error_mean);
    }
  }
}

/// The same starts give the same clusters as in an independent implementation, so each seed has its
/// error to rounding. The median of the nine must also be near the published one, though at the
/// smallest budget seeds differ by a factor of three.
TEST(Recorded, PaperPresetErrsAsTheIndependentFormDoesForEachSeed) {
  if (kIsSlow) GTEST_SKIP() << "too slow with a sanitizer";
  const std::array<double, 4> figures = {.091, .051, .028, .012};
  const auto errors = paper_errors(embedded(), kBudgets);
  for (std::size_t b = 0; b < kBudgets.size(); ++b) {
    for (std::size_t seed = 0; seed < kSeeds; ++seed) {
      EXPECT_NEAR(errors[seed][b], kPaperErrors[seed][b], 2e-3 * kPaperErrors[seed][b])
          << "seed " << seed + 1 << ", budget " << kBudgets[b];
    }
    EXPECT_NEAR(median(errors, b), figures[b], 0.25 * figures[b]) << "budget " << kBudgets[b];
  }
}

TEST(Recorded, PaperPresetErrsAsMeasuredOnTheLongerTrace) {
  if (kIsSlow) GTEST_SKIP() << "too slow with a sanitizer";
  if (longer_trace().empty()) GTEST_SKIP() << "the 8k trace is not at hand (CLUSTERKV_TRACES_DIR)";
  for (const auto& [layer, figure] : {std::pair{9, .066}, std::pair{29, .079}}) {
    EXPECT_NEAR(median(paper_errors(longer(layer), {256}), 0), figure, 0.25 * figure);
  }
}

}  // namespace
}  // namespace clusterkv::testing
