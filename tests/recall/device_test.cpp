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
        const int room =
            lists.capacity > 1024 ? lists.capacity : random_.between(0, lists.capacity);
        while (count < room) {
          const int first = (20 * step + random_.between(0, 120)) * kQuadRows % 1000;
          for (int i = 0; i < random_.between(1, 14) && count < room; ++i) {
            lists.rows_of(row, head)[count++] =
                stored_.row_of(std::min(first + i, kQuads * kQuadRows - 1));
          }
        }
        lists.num_rows[lists.list(row, head)] = count;
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
  const auto [num_slots, served, num_rows, dims, capacity, padding, steps] = GetParam();
  const int heads = kHeads * served;
  const auto entries = static_cast<std::size_t>(num_rows * heads * capacity);
  testing::Guarded<std::uint32_t> row_ids(entries);
  testing::Guarded<std::int32_t> counts(static_cast<std::size_t>(num_rows * heads));
  SelectionLists lists{};
  lists.selection_heads = heads;
  lists.capacity = capacity;
  lists.row_ids = row_ids.data();
  lists.num_rows = counts.data();
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
  for (std::uint32_t step = 1; step <= steps; ++step) {
    draw_lists(static_cast<int>(step), lists);
    // Some rows forget what was not used in the last two steps.
    std::vector<std::uint32_t> retain_from;
    for (int row = 0; row < num_rows; ++row) {
      retain_from.push_back(row % 2 == 1 && step > 2 ? step - 2 : 0);
    }
    on_device::recall_quads({pools, stored_.view(), lists, retain_from.data(), copies.data(),
                             results.data(), num_rows, kHeads, &step},
                            nullptr);
    for (int head = 0; head < kHeads; ++head) {
      std::vector<QuadCopy> cpu_copies(entries);
      RecallPlan plan{.copies = cpu_copies.data()};
      for (int row = 0; row < num_rows; ++row) {
        SlotPool& pool = cpu_[static_cast<std::size_t>(head)];
        pool.look_up({lists.rows_of(row, head * served),
                      lists.num_rows + lists.list(row, head * served), served, capacity},
                     step, retain_from[static_cast<std::size_t>(row)], plan);
        pool.give_slots(step, plan);
      }
      const on_device::RecallCounts& got = results[static_cast<std::size_t>(head)];
      ASSERT_EQ(got.hits, plan.hits) << "step " << step;
      ASSERT_EQ(got.misses, plan.misses) << "step " << step;
      ASSERT_EQ(got.in_place, plan.in_place) << "step " << step;
    }
    expect_same_slots(pools);
    if (HasFatalFailure()) return;
  }
}

std::string name_of_pool(const ::testing::TestParamInfo<PoolCase>& info) {
  const PoolCase& c = info.param;
  return "slots" + std::to_string(c.num_slots) + "_lists" + std::to_string(c.served) + "_rows" +
         std::to_string(c.num_rows) + "_" + testing::name_of(c.dims) +
         (c.capacity > 1024 ? "_long" : "") + (c.padding > 0 ? "_padded" : "") +
         (c.steps < 12 ? "_short" : "");
}
INSTANTIATE_TEST_SUITE_P(
    Ops, DeviceRecall,
    ::testing::Values(PoolCase{400, 1, 1, 128}, PoolCase{60, 1, 1, 64}, PoolCase{3, 1, 2, 80},
                      PoolCase{150, 1, 3, 96}, PoolCase{90, 4, 2, 64}, PoolCase{1500, 2, 2, 64},
                      PoolCase{200, 1, 2, 256}, PoolCase{1, 1, 1, 128},
                      PoolCase{100, 1, 1, 64, 1100}, PoolCase{150, 1, 1, 80, 150, 32},
                      PoolCase{150, 1, 1, 256, 150, 16}, PoolCase{12, 2, 2, 64, 60, 0, 2},
                      PoolCase{150, 1, 1, {64, 96}}, PoolCase{60, 1, 2, {128, 256}},
                      PoolCase{60, 1, 1, {80, 64}, 150, 16}),
    name_of_pool);

}  // namespace
}  // namespace clusterkv::recall
