// SPDX-License-Identifier: Apache-2.0
//
// The device's recall ops beside the CPU's: the same rows, slots, directory and counts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>

#include "kernels/recall/cuda/recall_ops.hpp"
#include "src/recall/slot_pool.hpp"
#include "tests/support/device.hpp"
#include "tests/support/tensors.hpp"

namespace clusterkv::recall {
namespace {

namespace on_device = testing::on_device;
using testing::Layout;
using testing::Tensor;

// ------------------------------------------------------------------------------- append rows

using AppendCase = std::tuple<DType, testing::Dims, DType>;

class DeviceAppend : public testing::DeviceTest,
                     public ::testing::WithParamInterface<AppendCase> {};

TEST_P(DeviceAppend, StoresTheRowsOfTheCpu) {
  const auto [dtype, dims, from] = GetParam();
  constexpr int kHeads = 3;
  constexpr int kTokens = 60;
  testing::Random random(3);
  for (const Layout layout :
       {Layout::kTokenMajor, Layout::kHeadMajor, Layout::kPadded, Layout::kStrided}) {
    for (const bool has_values : {true, false}) {
      Tensor key(from, kTokens, kHeads, dims.key, layout, random);
      Tensor value(from, kTokens, kHeads, dims.value, Layout::kTokenMajor, random);
      testing::TestRows cpu(dtype, dims, kHeads, 300, random, 0);
      testing::TestRows device = cpu;
      AppendParams p{key.view(), has_values ? value.view() : TensorView{}, 0, 0, cpu.pages(), 0,
                     cpu.view()};
      const std::vector<on_device::AppendJob> jobs = {{7, 199, cpu.pages(), 40},
                                                      {50, 3, cpu.pages(), 10}};
      for (const on_device::AppendJob& job : jobs) {
        p.first_token = job.first_token;
        p.num_tokens = job.num_tokens;
        p.first_row = job.first_row;
        for (int head = 0; head < kHeads; ++head) recall::cpu().append_rows(p, head);
      }
      p.live = device.view();
      on_device::append_rows(p, jobs.data(), 2, 40, nullptr);
      EXPECT_TRUE(device.same_but(cpu.snapshot(), {}));
    }
  }
}

std::string name_of_append(const ::testing::TestParamInfo<AppendCase>& info) {
  const auto& [dtype, dims, from] = info.param;
  return testing::name_of(dtype) + "_" + testing::name_of(dims) + "_from_" + testing::name_of(from);
}
INSTANTIATE_TEST_SUITE_P(
    Ops, DeviceAppend,
    ::testing::Combine(::testing::Values(DType::kF16, DType::kBF16),
                       ::testing::Values(64, 80, 96, 128, 256, testing::Dims(64, 128),
                                         testing::Dims(256, 80)),
                       ::testing::Values(DType::kF32, DType::kF16, DType::kBF16)),
    name_of_append);

// ------------------------------------------------------------------------------- recall quads

constexpr int kHeads = 2;
constexpr int kQuads = 300;

struct PoolCase {
  int num_slots;
  int served;    ///< lists of a KV head
  int num_rows;  ///< plan rows
  testing::Dims dims;
  int capacity = 150;       ///< of a list; above 1024 all lists are full: two rounds of a block
  std::size_t padding = 0;  ///< bytes after each row of the store and of the slots
  std::uint32_t steps = 12;
  int max_transfers = kNoLimit;  ///< of all rows but the third
  int near_pages = 0;            ///< of the store's
};

/// Lists of clusters and rows in memory of their own.
struct Lists {
  Lists(int plan_rows, int heads, int capacity)
      : entries(static_cast<std::size_t>(plan_rows * heads * capacity)),
        ids(std::vector<std::int32_t>(entries)),
        row_counts(std::vector<std::int32_t>(entries)),
        num_clusters(static_cast<std::size_t>(plan_rows * heads)),
        num_rows(static_cast<std::size_t>(plan_rows * heads)),
        row_ids(std::vector<std::uint32_t>(entries)),
        view{heads,           capacity,      ids.data(), row_counts.data(), num_clusters.data(),
             num_rows.data(), row_ids.data()} {}
  void copy(Lists& from) {
    std::copy_n(from.ids.data(), entries, ids.data());
    std::copy_n(from.row_counts.data(), entries, row_counts.data());
    std::copy_n(from.num_clusters.data(), from.num_clusters.size(), num_clusters.data());
    std::copy_n(from.num_rows.data(), from.num_rows.size(), num_rows.data());
    std::copy_n(from.row_ids.data(), entries, row_ids.data());
  }
  void expect_equal(Lists& other) {
    for (std::size_t list = 0; list < num_rows.size(); ++list) {
      ASSERT_EQ(num_clusters[list], other.num_clusters[list]);
      ASSERT_EQ(num_rows[list], other.num_rows[list]);
      const std::size_t first = list * static_cast<std::size_t>(view.capacity);
      for (std::size_t i = first; i < first + static_cast<std::size_t>(num_clusters[list]); ++i) {
        ASSERT_EQ(ids[i], other.ids[i]);
        ASSERT_EQ(row_counts[i], other.row_counts[i]);
      }
      for (std::size_t i = first; i < first + static_cast<std::size_t>(num_rows[list]); ++i) {
        ASSERT_EQ(row_ids[i], other.row_ids[i]);
      }
    }
  }

  std::size_t entries;
  testing::Guarded<std::int32_t> ids, row_counts, num_clusters, num_rows;
  testing::Guarded<std::uint32_t> row_ids;
  SelectionLists view;
};

class DeviceRecall : public testing::DeviceTest, public ::testing::WithParamInterface<PoolCase> {
 protected:
  DeviceRecall()
      : random_(11),
        stored_(DType::kBF16, GetParam().dims, kHeads, kQuads * kQuadRows, random_,
                GetParam().padding),
        directory_(kHeads * num_quads()),
        owner_(std::vector<std::uint32_t>(slots(), kNoQuad)),
        stamp_(std::vector<std::uint32_t>(slots(), 0)),
        referenced_(std::vector<std::uint32_t>(slots(), 0)),
        hand_(std::vector<std::int32_t>(kHeads, 0)),
        full_in_(std::vector<std::uint32_t>(kHeads, 0)),
        memory_(slots() * quad_bytes()),
        cpu_directory_(kHeads * num_quads()) {
    if (GetParam().near_pages > 0) stored_.keep_near(GetParam().near_pages);
    stored_.fill(random_, 0, kQuads * kQuadRows);
    std::fill_n(directory_.data(), directory_.size(), kNoSlot);
    for (int head = 0; head < kHeads; ++head) {
      cpu_.emplace_back(cpu_directory_.data() + static_cast<std::size_t>(head) * num_quads(),
                        static_cast<std::int64_t>(num_quads()), GetParam().num_slots);
    }
  }
  [[nodiscard]] std::size_t num_quads() const {
    return static_cast<std::size_t>(stored_.num_pages()) * kPageRows / kQuadRows;
  }
  static std::size_t slots() { return kHeads * static_cast<std::size_t>(GetParam().num_slots); }
  static std::size_t quad_bytes() {
    const testing::Dims dims = GetParam().dims;
    return kQuadRows * (2 * static_cast<std::size_t>(dims.key + dims.value) + GetParam().padding);
  }

  /// Random lists: clusters of neighbouring rows around a place that moves slowly.
  void draw_lists(int step, SelectionLists lists) {
    for (int row = 0; row < GetParam().num_rows; ++row) {
      for (int head = 0; head < lists.selection_heads; ++head) {
        int count = 0;
        int clusters = 0;
        const int room =
            lists.capacity > 1024 ? lists.capacity : random_.between(0, lists.capacity);
        while (count < room) {
          const int first = (20 * step + random_.between(0, 120)) * kQuadRows % 1000;
          const int before = count;
          for (int i = 0; i < random_.between(1, 14) && count < room; ++i) {
            lists.rows_of(row, head)[count++] =
                stored_.row_of(std::min(first + i, kQuads * kQuadRows - 1));
          }
          lists.clusters_of(row, head)[clusters] = 3 * clusters;
          lists.counts_of(row, head)[clusters++] = count - before;
        }
        lists.num_rows[lists.list(row, head)] = count;
        lists.num_clusters[lists.list(row, head)] = clusters;
      }
    }
  }

  void expect_same_slots(const on_device::SlotPools& pools) {
    for (std::size_t i = 0; i < directory_.size(); ++i) {
      ASSERT_EQ(directory_[i], cpu_directory_[i]) << "quad " << i;
    }
    for (int head = 0; head < kHeads; ++head) {
      for (std::uint32_t quad = 0; quad < num_quads(); ++quad) {
        const std::uint32_t slot = directory_[static_cast<std::size_t>(head) * num_quads() + quad];
        if (slot == kNoSlot) continue;
        const std::byte* got =
            pools.slots + static_cast<std::size_t>(head) * pools.head_stride + slot * quad_bytes();
        EXPECT_EQ(std::memcmp(got, stored_.view().row(head, quad * kQuadRows), quad_bytes()), 0);
      }
    }
  }

  testing::Random random_;
  testing::TestRows stored_;
  testing::Guarded<std::uint32_t> directory_, owner_, stamp_, referenced_;
  testing::Guarded<std::int32_t> hand_;
  testing::Guarded<std::uint32_t> full_in_;
  testing::GuardedBytes memory_;
  std::vector<std::uint32_t> cpu_directory_;
  std::vector<SlotPool> cpu_;
};

TEST_P(DeviceRecall, SlotsHitsAndCopiesAreThoseOfTheCpu) {
  const auto [num_slots, served, num_rows, dims, capacity, padding, steps, limit, near_pages] =
      GetParam();
  const int heads = kHeads * served;
  const auto entries = static_cast<std::size_t>(num_rows * heads * capacity);
  Lists device(num_rows, heads, capacity), cpu(num_rows, heads, capacity);
  const SelectionLists& lists = device.view;
  testing::Guarded<SequenceView> views(static_cast<std::size_t>(num_rows));
  for (int row = 0; row < num_rows; ++row) {
    views[static_cast<std::size_t>(row)] = {};
    views[static_cast<std::size_t>(row)].everything = row == 2;
  }
  testing::Guarded<QuadCopy> copies(entries);
  testing::Guarded<on_device::RecallCounts> results(kHeads);
  const on_device::SlotPools pools{directory_.data(),
                                   owner_.data(),
                                   stamp_.data(),
                                   referenced_.data(),
                                   hand_.data(),
                                   full_in_.data(),
                                   memory_.data(),
                                   static_cast<std::size_t>(num_slots) * quad_bytes(),
                                   static_cast<std::int64_t>(num_quads()),
                                   num_slots};
  std::int64_t left = 0;
  for (std::uint32_t step = 1; step <= steps; ++step) {
    draw_lists(static_cast<int>(step), lists);
    cpu.copy(device);
    // Some rows forget what was not used in the last two steps.
    std::vector<std::uint32_t> retain_from;
    for (int row = 0; row < num_rows; ++row) {
      retain_from.push_back(row % 2 == 1 && step > 2 ? step - 2 : 0);
    }
    on_device::recall_quads({pools, stored_.view(), lists, retain_from.data(), copies.data(),
                             results.data(), num_rows, kHeads, &step, nullptr, views.data(), limit},
                            nullptr);
    for (int head = 0; head < kHeads; ++head) {
      std::vector<QuadCopy> cpu_copies(entries);
      RecallPlan plan{.copies = cpu_copies.data()};
      for (int row = 0; row < num_rows; ++row) {
        SlotPool& pool = cpu_[static_cast<std::size_t>(head)];
        pool.look_up({cpu.view.rows_of(row, head * served),
                      cpu.view.num_rows + lists.list(row, head * served), served, capacity,
                      row == 2 ? kNoLimit : limit, stored_.view().num_near},
                     step, retain_from[static_cast<std::size_t>(row)], plan);
        for (int i = 0; i < served; ++i) pool.leave_out(cpu.view, row, head * served + i, plan);
        pool.give_slots(step, plan);
      }
      const on_device::RecallCounts& got = results[static_cast<std::size_t>(head)];
      ASSERT_EQ(got.hits, plan.hits) << "step " << step;
      ASSERT_EQ(got.misses, plan.misses) << "step " << step;
      ASSERT_EQ(got.in_place, plan.in_place) << "step " << step;
      ASSERT_EQ(got.left_clusters, plan.left_clusters) << "step " << step;
      ASSERT_EQ(got.left_rows, plan.left_rows) << "step " << step;
      left += plan.left_clusters;
    }
    device.expect_equal(cpu);
    expect_same_slots(pools);
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(left > 0, limit != kNoLimit);
  const auto near_quads = static_cast<std::size_t>(near_pages * kPageRows / kQuadRows);
  for (std::size_t quad = 0; quad < near_quads; ++quad) EXPECT_EQ(directory_[quad], kNoSlot);
}

std::string name_of_pool(const ::testing::TestParamInfo<PoolCase>& info) {
  const PoolCase& c = info.param;
  return "slots" + std::to_string(c.num_slots) + "_lists" + std::to_string(c.served) + "_rows" +
         std::to_string(c.num_rows) + "_" + testing::name_of(c.dims) +
         (c.capacity > 1024 ? "_long" : "") + (c.padding > 0 ? "_padded" : "") +
         (c.max_transfers == kNoLimit ? "" : "_limit" + std::to_string(c.max_transfers)) +
         (c.steps < 12 ? "_short" : "") + (c.near_pages > 0 ? "_near" : "");
}
INSTANTIATE_TEST_SUITE_P(
    Ops, DeviceRecall,
    ::testing::Values(
        PoolCase{400, 1, 1, 128}, PoolCase{60, 1, 1, 64}, PoolCase{3, 1, 2, 80},
        PoolCase{150, 1, 3, 96}, PoolCase{90, 4, 2, 64}, PoolCase{1500, 2, 2, 64},
        PoolCase{200, 1, 2, 256}, PoolCase{1, 1, 1, 128}, PoolCase{100, 1, 1, 64, 1100},
        PoolCase{150, 1, 1, 80, 150, 32}, PoolCase{150, 1, 1, 256, 150, 16},
        PoolCase{12, 2, 2, 64, 60, 0, 2}, PoolCase{150, 1, 1, {64, 96}},
        PoolCase{60, 1, 2, {128, 256}}, PoolCase{60, 1, 1, {80, 64}, 150, 16},
        PoolCase{400, 1, 4, 128, 150, 0, 12, 5}, PoolCase{60, 4, 3, 64, 150, 0, 12, 20},
        PoolCase{120, 1, 2, 64, 150, 0, 24, 20}, PoolCase{40, 2, 2, 64, 1100, 0, 12, 30},
        PoolCase{3, 1, 2, 64, 60, 0, 2, 1}, PoolCase{60, 2, 2, 128, 150, 16, 12, kNoLimit, 2},
        PoolCase{60, 1, 3, 64, 150, 0, 12, 8, 2}),
    name_of_pool);

}  // namespace
}  // namespace clusterkv::recall
