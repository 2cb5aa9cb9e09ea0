// SPDX-License-Identifier: Apache-2.0
//
// Batches of 1 to 64 rows of every kind: sequences that begin, that are below the dense threshold, that are
// far above it; in their prompt or past it; with budgets and numbers of queries of their own. Each row has the
// bits it has alone.
#include <numeric>

#include "tests/pipeline/lineage.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kMost = 64;
constexpr int kSteps = 6;

CacheConfig config_with(Residency residency) {
  CacheConfig config = config_of(residency);
  config.select.dense_threshold = 1.5F;
  config.max_sequences = kMost;
  config.max_tokens = 40000;
  return config;
}

/// Tokens of sequence `i` before the batch: none, too few for a segment, below one and a half budgets, and far
/// above that.
int length_before(int i) {
  constexpr std::array kLengths = {0, 700, 1, 35, 130, 3, 420, 45, 0, 901, 60, 20};
  return kLengths[static_cast<std::size_t>(i) % kLengths.size()];
}

/// What row `i` does in a step. Those that begin have a prompt.
StepRow row_of(int i, int step, SequenceId id) {
  StepRow row{.id = id};
  constexpr std::array kBudgets = {0, 7, 64, 32, 1};
  row.budget_tokens = kBudgets[static_cast<std::size_t>(i + step) % kBudgets.size()];
  if (step < 2 && length_before(i) == 0) {
    row.num_new_tokens = 1 + 37 * (i % 5);
    row.phase = step == 0 ? Phase::kPrefill : Phase::kPrefillLast;
  } else if ((i + step) % 4 == 3) {
    row.num_new_tokens = 5;
  }
  row.num_query_tokens = std::min(row.num_new_tokens, (i + 2 * step) % 4);
  return row;
}

/// Each sequence alone: [step] its outputs of all layers, none where it asks nothing.
std::vector<Outputs> tell_alone(const CacheConfig& config, int i) {
  Driver<ClusterKVCache> d(config, {1, 1024, 64, 4});
  const SequenceId id = d.add(static_cast<std::uint64_t>(i + 1));
  if (length_before(i) > 0) d.prefill(id, length_before(i));
  std::vector<Outputs> all;
  for (int step = 0; step < kSteps; ++step) all.push_back(d.step({row_of(i, step, id)}));
  return all;
}

class RaggedBatch : public ::testing::TestWithParam<Residency> {};
INSTANTIATE_TEST_SUITE_P(Residencies, RaggedBatch, kResidencies, name_of);

TEST_P(RaggedBatch, OfAnySizeGivesEachRowItsOwnBits) {
  const CacheConfig config = config_with(GetParam());
  std::vector<std::vector<Outputs>> alone;
  for (int i = 0; i < kMost; ++i) alone.push_back(tell_alone(config, i));
  std::int64_t dense = 0, sparse = 0;
  for (const int size : {1, 2, 3, 5, 8, 13, 21, 32, 47, 63, 64}) {
    Driver<ClusterKVCache> d(config, {size, 64 * 160, 64, 4});
    std::vector<SequenceId> ids;
    for (int i = 0; i < size; ++i) {
      ids.push_back(d.add(static_cast<std::uint64_t>(i + 1)));
      if (length_before(i) > 0) d.prefill(ids.back(), length_before(i));
    }
    for (int step = 0; step < kSteps; ++step) {
      std::vector<StepRow> rows;
      std::vector<int> order(static_cast<std::size_t>(size));
      std::iota(order.begin(), order.end(), 0);
      std::rotate(order.begin(), order.begin() + 7 * step % size, order.end());
      if (step % 2 == 1) std::reverse(order.begin(), order.end());
      for (const int i : order) {
        rows.push_back(row_of(i, step, ids[static_cast<std::size_t>(i)]));
      }
      const Outputs together = d.step(rows);
      for (std::size_t layer = 0; layer < together.size(); ++layer) {
        int query_row = 0;
        for (std::size_t k = 0; k < rows.size(); ++k) {
          const Output& wanted =
              alone[static_cast<std::size_t>(order[k])][static_cast<std::size_t>(step)][layer];
          for (int q = 0; q < rows[k].num_query_tokens; ++q, ++query_row) {
            ASSERT_TRUE(
                same_bits({output_row(together[layer], query_row, 6)}, {output_row(wanted, q, 6)}))
                << "batch of " << size << ", step " << step << ", sequence " << order[k];
          }
        }
      }
    }
    const StepStats total = d.cache.stats().total;
    dense += total.dense_selections;
    sparse += total.selections - total.dense_selections;
  }
  EXPECT_GT(dense, 1000);
  EXPECT_GT(sparse, 1000);
}

}  // namespace
}  // namespace clusterkv::testing
