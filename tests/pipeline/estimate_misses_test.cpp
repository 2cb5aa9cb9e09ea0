// SPDX-License-Identifier: Apache-2.0
//
// With a limit on transfers a step attends exactly to what is in slots or may still be brought, and estimates
// the rest. The oracle knows sizes of clusters and what was brought before, and says which clusters leave;
// a cache with all rows in place then attends to exactly the others.
#include <map>
#include <set>

#include "tests/pipeline/lineage.hpp"
#include "tests/support/disk.hpp"
#include "tests/support/errors.hpp"
#include "tests/support/trace.hpp"

namespace clusterkv::testing {
namespace {

constexpr int kBudget = 40;

/// One sparse layer; nothing is sealed while it decodes, and slots have room for all rows.
CacheConfig config_with(int transfer_tokens, HeadGrouping grouping = HeadGrouping::kShared) {
  CacheConfig config = small_config(small_model(1, 6, 2));
  config.cluster.window_tokens = 3000;
  config.cluster.segment_tokens = 300;
  config.select.budget_tokens = kBudget;
  config.select.grouping = grouping;
  config.select.tail = Tail::kSecondMoment;
  config.store.residency = Residency::kHost;
  config.store.device_bytes = std::size_t{16} << 20;
  config.store.misses = Misses::kEstimateMisses;
  config.store.transfer_tokens = transfer_tokens;
  return config;
}

CacheConfig in_place(CacheConfig config) {
  config.store = {};
  return config;
}

using List = std::vector<Choice::Entry>;

/// What is in the slots of one KV head, and what a step may still bring.
class Oracle {
 public:
  /// \param sizes  (cluster, rows) of all clusters
  explicit Oracle(const List& sizes) {
    int row = 0;
    for (const auto& entry : sizes) {
      first_[entry.cluster] = row;
      row += entry.rows;
    }
  }

  /// Takes from the lists of a KV head what leaves them.
  void step(std::vector<List>& lists, int max_quads) {
    std::set<int> wanted, left;
    brought = 0;
    for (const List& list : lists) {
      for (const auto& entry : list) {
        for (const int quad : quads_of(entry)) {
          if (present_.contains(quad) || !wanted.insert(quad).second) continue;
          if (brought == max_quads) left.insert(quad);
          if (brought < max_quads) ++brought;
        }
      }
    }
    for (List& list : lists) {
      std::erase_if(list, [&](const Choice::Entry& entry) {
        const std::set<int> quads = quads_of(entry);
        const bool leaves =
            std::any_of(quads.begin(), quads.end(), [&](int quad) { return left.contains(quad); });
        left_clusters += leaves ? 1 : 0;
        left_rows += leaves ? entry.rows : 0;
        return leaves;
      });
    }
    for (const int quad : wanted) {
      if (!left.contains(quad)) present_.insert(quad);
    }
  }

  int brought = 0;  ///< in the newest step
  std::int64_t left_clusters = 0;
  std::int64_t left_rows = 0;

 private:
  [[nodiscard]] std::set<int> quads_of(const Choice::Entry& entry) const {
    std::set<int> quads;
    for (int r = 0; r < entry.rows; ++r) quads.insert((first_.at(entry.cluster) + r) / 4);
    return quads;
  }

  std::map<int, int> first_;  ///< row of each cluster
  std::set<int> present_;
};

/// A Selection that owns its lists.
struct OwnSelection {
  explicit OwnSelection(const std::vector<List>& lists) {
    const auto heads = static_cast<std::int64_t>(lists.size());
    ids.assign(lists.size() * kBudget, -1);
    counts.assign(ids.size(), 0);
    for (std::size_t head = 0; head < lists.size(); ++head) {
      for (std::size_t i = 0; i < lists[head].size(); ++i) {
        ids[head * kBudget + i] = lists[head][i].cluster;
        counts[head * kBudget + i] = lists[head][i].rows;
      }
    }
    selection = {contiguous_view(ids.data(), DType::kI32, {1, heads, kBudget}),
                 contiguous_view(counts.data(), DType::kI32, {1, heads, kBudget})};
  }
  std::vector<std::int32_t> ids, counts;
  Selection selection;
};

Output attend_selected(Driver<ClusterKVCache>& d, const std::vector<List>& lists) {
  const OwnSelection own(lists);
  const std::vector<float> query = d.queries(0);
  Output output;
  const AttentionOut out = make_out(output, 1, 6, 64);
  d.cache.attend_selected(0, d.plan, own.selection, {d.query_view(query), out});
  return output;
}

/// All clusters of a sequence, by a budget that takes them all.
std::vector<List> all_clusters(Driver<ClusterKVCache>& d, SequenceId id) {
  d.begin({{id, 1, 1, Phase::kDecode, 2000}});
  d.append_all();
  return copy_choice(d.select(0)).lists[0];
}

void expect_oracle(const CacheConfig& config) {
  const PlanLimits limits{1, 1024, 2000};
  Driver<ClusterKVCache> d(config, limits), twin(in_place(config), limits);
  const SequenceId id = d.add(1);
  twin.add(1);
  d.prefill(id, 1504);
  twin.prefill(id, 1504);
  const std::size_t served = config.select.grouping == HeadGrouping::kShared ? 1 : 3;
  const std::vector<List> sizes = all_clusters(d, id);
  all_clusters(twin, id);
  std::vector<Oracle> oracles;
  for (std::size_t head = 0; head < sizes.size(); head += served) {
    oracles.emplace_back(sizes[head]);
  }
  for (int i = 0; i < 40; ++i) {
    for (auto* each : {&d, &twin}) {
      each->begin({{.id = id}});
      each->append_all();
    }
    const std::vector<List> chosen = copy_choice(d.select(0)).lists[0];
    const StepStats before = d.cache.stats().total;
    // The caller's choice is no other than ours.
    const Output got = i % 3 == 2 ? attend_selected(d, chosen) : d.attend(0, d.queries(0));
    const StepStats after = d.cache.stats().total;
    std::vector<List> kept;
    std::int64_t brought = 0, clusters = 0, rows = 0;
    for (std::size_t kv_head = 0; kv_head < oracles.size(); ++kv_head) {
      const auto first = chosen.begin() + static_cast<std::ptrdiff_t>(kv_head * served);
      std::vector<List> lists(first, first + static_cast<std::ptrdiff_t>(served));
      oracles[kv_head].step(lists, config.store.transfer_tokens / 4);
      brought += oracles[kv_head].brought;
      clusters += oracles[kv_head].left_clusters;
      rows += oracles[kv_head].left_rows;
      kept.insert(kept.end(), lists.begin(), lists.end());
    }
    ASSERT_TRUE(same_bits({got}, {attend_selected(twin, kept)})) << "step " << i;
    EXPECT_EQ(after.quad_misses - before.quad_misses, brought);
    EXPECT_EQ(after.quads_in_place, 0);
    EXPECT_EQ(after.estimated_clusters, clusters);
    EXPECT_EQ(after.estimated_tokens, rows);
    EXPECT_EQ(after.attended_tokens,
              after.sink_tokens + after.selected_tokens + after.pending_tokens);
    EXPECT_EQ(after.selected_tokens + after.estimated_tokens,
              (i + 1) * static_cast<std::int64_t>(sizes.size()) * kBudget);
  }
  EXPECT_GT(d.cache.stats().total.estimated_clusters, 40);
  EXPECT_GT(d.cache.stats().total.selected_clusters, 40);
}

TEST(EstimateMisses, AttendsExactlyToRecalledRowsAndEstimatesTheRest) {
  for (const int transfer_tokens : {4, 16}) {
    expect_oracle(config_with(transfer_tokens));
    expect_oracle(config_with(transfer_tokens, HeadGrouping::kPerQueryHead));
  }
}

TEST(EstimateMisses, CountsReadsFromADiskAsTransfers) {
  const Directory directory;
  CacheConfig config = config_with(16);
  config.store.cold_path = directory.path();
  expect_oracle(config);
}

/// Segments, windows, forks, a small pool and a batch: never more than the limit, and nothing is lost.
TEST(EstimateMisses, NeverTransfersMoreThanTheLimit) {
  for (const Retention retention : {Retention::kLru, Retention::kRetainSteps}) {
    for (const std::size_t device_bytes : {std::size_t{0}, std::size_t{40000}}) {
      CacheConfig config = config_with(12);
      config.cluster.window_tokens = 24;
      config.cluster.segment_tokens = 96;
      config.store.device_bytes = device_bytes;
      config.store.retention = retention;
      Driver<ClusterKVCache> d(config);
      const SequenceId a = d.add(1), b = d.add(2);
      d.prefill(a, 500);
      d.prefill(b, 200);
      SequenceId child{};
      for (int i = 0; i < 60; ++i) {
        if (i == 20) child = d.fork(a);
        if (i == 40) d.cache.truncate(b, 150);
        i < 20 ? d.step({{.id = a}, {.id = b}}) : d.step({{.id = a}, {.id = b}, {.id = child}});
        const StepStats step = d.cache.stats().step;
        ASSERT_LE(step.quad_misses + step.quads_in_place, (i < 20 ? 2 : 3) * 2 * 3);
        ASSERT_EQ(step.selected_tokens + step.estimated_tokens, (i < 20 ? 2 : 3) * 2 * kBudget);
      }
      EXPECT_GT(d.cache.stats().total.estimated_clusters, 0);
    }
  }
}

TEST(EstimateMisses, WithALimitThatIsNeverReachedChangesNothing) {
  CacheConfig limited = config_with(1 << 20);
  limited.cluster.window_tokens = 24;
  CacheConfig free = limited;
  free.store.misses = Misses::kCopyMisses;
  free.store.transfer_tokens = 0;
  Driver<ClusterKVCache> d(limited), twin(free);
  const SequenceId id = d.add(1);
  twin.add(1);
  d.prefill(id, 500);
  twin.prefill(id, 500);
  EXPECT_TRUE(same_bits(go_on(d, id, 60), go_on(twin, id, 60)));
  EXPECT_EQ(d.cache.stats().total.estimated_clusters, 0);
}

/// Who asks for the same again has it all after some steps.
TEST(EstimateMisses, BringsWhatIsAskedForAgain) {
  Driver<ClusterKVCache> d(config_with(8)), twin(in_place(config_with(8)));
  const SequenceId id = d.add(1);
  twin.add(1);
  d.prefill(id, 900);
  twin.prefill(id, 900);
  std::int64_t left = kBudget;
  for (int i = 0; left > 0; ++i) {
    ASSERT_LT(i, 40) << "40 rows in 40 quads at most, two a step";
    for (auto* each : {&d, &twin}) {
      each->begin({{.id = id}});
      each->append_all();
    }
    const std::vector<float> query(6 * 64, 0.5F);
    const Output got = d.attend(0, query), wanted = twin.attend(0, query);
    left = d.cache.stats().step.estimated_tokens;
    EXPECT_EQ(same_bits({got}, {wanted}), left == 0);
  }
}

TEST(EstimateMisses, CopiesWhatAttendsToEverything) {
  CacheConfig config = config_with(4);
  config.cluster.window_tokens = 24;
  config.select.dense_threshold = 3;
  Driver<ClusterKVCache> d(config), twin(in_place(config));
  const SequenceId id = d.add(1);
  twin.add(1);
  d.prefill(id, 104);
  twin.prefill(id, 104);
  EXPECT_TRUE(same_bits(go_on(d, id, 1), go_on(twin, id, 1)));
  EXPECT_GT(d.cache.stats().step.quad_misses, 2) << "a quad a head is the limit";
  EXPECT_EQ(d.cache.stats().step.estimated_tokens, 0);
  EXPECT_EQ(d.cache.stats().step.dense_selections, 2);
}

TEST(EstimateMisses, NeedsRowsInTheHostStore) {
  CacheConfig config = config_with(8);
  for (const Residency residency : {Residency::kAuto, Residency::kDevice}) {
    config.store.residency = residency;
    expect_error<ConfigError>(
        [&] { ClusterKVCache cache(config); },
        "store.misses: kEstimateMisses, expected with Residency::kHost or kHybrid");
    EXPECT_FALSE(ClusterKVCache::supports(config, Backend::kCpu).ok);
  }
  EXPECT_NO_THROW(ClusterSelector{config}) << "has no rows to transfer";
}

}  // namespace
}  // namespace clusterkv::testing
