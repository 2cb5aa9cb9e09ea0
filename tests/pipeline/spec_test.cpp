// SPDX-License-Identifier: Apache-2.0
//
// Clusters, their order and the choices on the embedded trace against those of an independent NumPy
// form of the algorithm (make_spec_fixture.py).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <numeric>

#include "tests/support/harness.hpp"
#include "tests/support/trace.hpp"

namespace clusterkv::testing {
namespace {

using Positions = std::vector<std::int32_t>;

/// The fixture, read front to back.
class Reader {
 public:
  explicit Reader(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(in), {});
  }
  template <class T>
  T next() {
    T value{};
    if (at_ + sizeof value > bytes_.size()) throw std::runtime_error("the fixture is too short");
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  template <class T>
  Positions next(int count) {
    Positions values;
    for (int i = 0; i < count; ++i) values.push_back(next<T>());
    return values;
  }
  [[nodiscard]] bool at_end() const { return at_ == bytes_.size(); }

 private:
  std::string bytes_;
  std::size_t at_ = 0;
};

struct Fixture {
  struct Clusters {
    Positions sizes, order;  ///< of all segments, one after the other
  };
  struct Decision {
    std::uint64_t hash;
    float distance;  ///< of the votes on both sides of the cut, relative
  };

  Fixture() {
    Reader in(CLUSTERKV_DATA_DIR "/../tests/pipeline/data/spec_choices.bin");
    if (in.next<std::uint64_t>() != 0x3143455053564b43U) throw std::runtime_error("no fixture");
    const int kv_heads = in.next<std::int32_t>();
    const int segments = in.next<std::int32_t>();
    num_queries = in.next<std::int32_t>();
    const int num_budgets = in.next<std::int32_t>();
    budgets = in.next<std::int32_t>(num_budgets);
    for (int head = 0; head < kv_heads; ++head) {
      Clusters all;
      for (int segment = 0; segment < segments; ++segment) {
        const Positions sizes = in.next<std::uint16_t>(in.next<std::int32_t>());
        const Positions order =
            in.next<std::uint16_t>(std::accumulate(sizes.begin(), sizes.end(), 0));
        all.sizes.insert(all.sizes.end(), sizes.begin(), sizes.end());
        all.order.insert(all.order.end(), order.begin(), order.end());
      }
      clusters.push_back(all);
    }
    for (auto* list : {&int8, &f32, &int8_rounded}) {
      for (int i = 0; i < num_budgets * kv_heads * num_queries; ++i) {
        const auto hash = in.next<std::uint64_t>();
        list->push_back({hash, in.next<float>()});
      }
    }
    if (!in.at_end()) throw std::runtime_error("the fixture is too long");
  }

  int num_queries = 0;
  Positions budgets;
  std::vector<Clusters> clusters;      ///< [kv_head]
  std::vector<Decision> int8, f32;     ///< [budget, kv_head, query]
  std::vector<Decision> int8_rounded;  ///< the same, queries rounded to 16 bits
};

std::uint64_t fnv1a(const Positions& positions) {
  std::uint64_t state = 0xcbf29ce484222325U;
  for (const std::int32_t position : positions) {
    for (int shift = 0; shift < 32; shift += 8) {
      state = (state ^ (static_cast<std::uint32_t>(position) >> shift & 0xffU)) * 0x100000001b3U;
    }
  }
  return state;
}

/// The trace in f32 rows: a sequence a budget, and a last one whose budget is everything.
class Replay {
 public:
  Replay(const Fixture& fixture, IndexDType dtype)
      : r_(load_recorded_layer(CLUSTERKV_DATA_DIR "/smollm2-135m-genesis-4k-layer9.safetensors",
                               9)),
        key_(widened(r_.key)),
        value_(widened(r_.value)),
        query_(widened(r_.query)),
        harness_(config(dtype), {5, 5 * r_.query_start, r_.num_tokens}) {
    Positions budgets = fixture.budgets;
    budgets.push_back(r_.num_tokens);
    for (const std::int32_t budget : budgets) {
      rows_.push_back(
          {harness_.cache.add_sequence(), r_.query_start, 0, Phase::kPrefillLast, budget});
    }
    append(0, r_.query_start);
    for (StepRow& row : rows_) row = {row.id, 1, 1, Phase::kDecode, row.budget_tokens};
  }

  void step(int query) {
    append(r_.query_start + query, 1);
    TensorView q = contiguous_view(query_.data() + query * 9 * 64, DType::kF32, {5, 9, 64});
    q.stride[0] = 0;  // every row asks the same
    const Selection selection = harness_.cache.select(0, harness_.plan, q);
    choice = copy_choice(selection);
    positions = harness_.positions(0, selection);
  }

  /// Chosen clustered tokens of a row in stored order.
  [[nodiscard]] Positions chosen(std::size_t row, std::size_t kv_head) const {
    const Positions& all = positions[row][kv_head];
    const int clustered = r_.query_start - 16;
    const auto count = std::min<std::ptrdiff_t>(rows_[row].budget_tokens, clustered);
    return {all.begin() + 16, all.begin() + 16 + count};
  }

  Choice choice;
  std::vector<std::vector<Positions>> positions;

 private:
  [[nodiscard]] CacheConfig config(IndexDType dtype) const {
    CacheConfig config = CacheConfig::standard(r_.model(DType::kF32));
    config.select.dense_layers = 0;
    config.select.dense_threshold = 0;
    config.cluster.index_dtype = dtype;
    config.max_sequences = 5;
    config.max_tokens = 5 * r_.num_tokens;
    return config;
  }
  void append(int first, int count) {
    harness_.begin(rows_);
    std::vector<float> key, value;
    for (int row = 0; row < 5; ++row) {
      const auto range = [&](const std::vector<float>& all, std::vector<float>& to) {
        to.insert(to.end(), all.begin() + first * 192, all.begin() + (first + count) * 192);
      };
      range(key_, key);
      range(value_, value);
    }
    harness_.append(0, key, value);
  }

  RecordedLayer r_;
  std::vector<float> key_, value_, query_;
  Harness<ClusterKVCache> harness_;
  std::vector<StepRow> rows_;
};

/// Compares with one way of deciding, and counts.
struct Judge {
  const std::vector<Fixture::Decision>* decisions;
  float near_tie;  ///< a difference needs votes that were as good as equal
  int same = 0;
  int near_ties = 0;
};

void compare_choices(const Fixture& fixture, const Replay& replay, int query, Judge& judge) {
  const std::size_t heads = fixture.clusters.size();
  for (std::size_t b = 0; b < fixture.budgets.size(); ++b) {
    for (std::size_t head = 0; head < heads; ++head) {
      Positions ours = replay.chosen(b, head);
      EXPECT_EQ(static_cast<int>(ours.size()), fixture.budgets[b]);
      std::sort(ours.begin(), ours.end());
      const Fixture::Decision& wanted =
          (*judge.decisions)[(b * heads + head) * static_cast<std::size_t>(fixture.num_queries) +
                             static_cast<std::size_t>(query)];
      if (fnv1a(ours) == wanted.hash) {
        ++judge.same;
        continue;
      }
      ++judge.near_ties;
      EXPECT_LT(wanted.distance, judge.near_tie)
          << "query " << query << ", budget " << fixture.budgets[b] << ", KV head " << head;
    }
  }
}

class Specification : public ::testing::TestWithParam<IndexDType> {};

TEST_P(Specification, ClustersAndTheirOrderAreEqual) {
  const Fixture fixture;
  Replay replay(fixture, GetParam());
  replay.step(0);
  int clusters = 0;
  for (std::size_t head = 0; head < fixture.clusters.size(); ++head) {
    Positions sizes;
    for (const Choice::Entry& entry : replay.choice.lists[4][head]) sizes.push_back(entry.rows);
    EXPECT_EQ(sizes, fixture.clusters[head].sizes) << "KV head " << head;
    EXPECT_EQ(replay.chosen(4, head), fixture.clusters[head].order) << "KV head " << head;
    clusters += static_cast<int>(sizes.size());
  }
  std::printf("%d clusters of %zu KV heads: the same tokens in the same order\n", clusters,
              fixture.clusters.size());
}

/// An int8 index is scored with queries rounded to 16 bits, which moves votes by up to 1e-4.
TEST_P(Specification, ChoicesAreEqualButForNearTies) {
  const Fixture fixture;
  std::vector<Judge> judges = {{&fixture.f32, 1e-5F}};
  if (GetParam() == IndexDType::kInt8) {
    judges = {{&fixture.int8_rounded, 1e-5F}, {&fixture.int8, 2e-4F}};
  }
  Replay replay(fixture, GetParam());
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  const int num_queries = 16;
#else
  const int num_queries = fixture.num_queries;
#endif
  for (int query = 0; query < num_queries; ++query) {
    replay.step(query);
    for (Judge& judge : judges) compare_choices(fixture, replay, query, judge);
  }
  for (const Judge& judge : judges) {
    std::printf("%d choices: %d the same, %d where votes differ by less than %.0e\n",
                judge.same + judge.near_ties, judge.same, judge.near_ties, double{judge.near_tie});
    EXPECT_LE(judge.near_ties, 10);
  }
}

INSTANTIATE_TEST_SUITE_P(Indexes, Specification,
                         ::testing::Values(IndexDType::kInt8, IndexDType::kF32),
                         [](const auto& dtype) {
                           return dtype.param == IndexDType::kInt8 ? "Int8" : "F32";
                         });

}  // namespace
}  // namespace clusterkv::testing
