// SPDX-License-Identifier: Apache-2.0
//
// The device's recall and then attend: rows in slots give the bits of rows in place.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/attend/cuda/attend_ops.hpp"
#include "kernels/recall/cuda/recall_ops.hpp"
#include "kernels/recall/rules.hpp"
#include "tests/attend/fixture.hpp"
#include "tests/support/device.hpp"

namespace clusterkv::recall {
namespace {

namespace on_device = testing::on_device;
using attend::AttendParams;
using attend::Attention;
using attend::Result;

constexpr int kHeads = 2;

/// Empty pools for the scene's store, whose rows have padding.
struct Pools {
  Pools(testing::Scene& scene, int num_slots)
      : quads(static_cast<std::size_t>(scene.stored.num_pages()) * kPageRows / kQuadRows),
        directory(std::vector<std::uint32_t>(kHeads * quads, kNoSlot)),
        owner(std::vector<std::uint32_t>(kHeads * slots_of(num_slots), kNoQuad)),
        stamp(std::vector<std::uint32_t>(kHeads * slots_of(num_slots), 0)),
        referenced(std::vector<std::uint32_t>(kHeads * slots_of(num_slots), 0)),
        hand(std::vector<std::int32_t>(kHeads, 0)),
        full_in(std::vector<std::uint32_t>(kHeads, 0)),
        stride(slots_of(num_slots) * kQuadRows * scene.stored.view().row_bytes),
        slots(kHeads * stride),
        view{directory.data(),  owner.data(), stamp.data(),
             referenced.data(), hand.data(),  full_in.data(),
             slots.data(),      stride,       static_cast<std::int64_t>(quads),
             num_slots} {}
  static std::size_t slots_of(int num_slots) { return static_cast<std::size_t>(num_slots); }

  std::size_t quads;
  testing::Guarded<std::uint32_t> directory, owner, stamp, referenced;
  testing::Guarded<std::int32_t> hand;
  testing::Guarded<std::uint32_t> full_in;
  std::size_t stride;
  testing::GuardedBytes slots;
  on_device::SlotPools view;
};

Result attend_on_device(Attention& attention) {
  AttendParams p = attention.params();
  SequenceView views[2] = {p.rows[1], p.rows[1]};
  views[0].query_row = -1;
  p.rows = views;
  testing::Guarded<std::uint32_t> arrived(std::vector<std::uint32_t>(2 * kHeads, 0));
  return attention.collect(
      [&](const attend::MergeParams& merge) {
        on_device::attend(merge, arrived.data(), {2, views[1].num_blocks, nullptr});
      },
      p, true, true);
}

class DeviceRecallAttend : public testing::DeviceTest {};

TEST_F(DeviceRecallAttend, RowsInSlotsGiveTheBitsOfRowsInPlace) {
  for (const int num_slots : {9, 400}) {  // most quads stay in place, or all are recalled
    testing::SceneShape shape;
    shape.op = {Backend::kCuda, DType::kBF16, 80};
    shape.index_dtype = IndexDType::kInt8;
    shape.num_kv_heads = kHeads;
    shape.segments = {{60, 400}, {20, 150}};
    Attention attention(shape, HeadGrouping::kShared);
    attention.choose_some();
    attention.tail = Tail::kMean;
    const Result in_place = attend_on_device(attention);

    testing::Scene& scene = attention.scene;
    Pools pools(scene, num_slots);
    const SelectionLists lists = attention.params().lists;
    const std::uint32_t retain_from[2] = {0, 0};
    testing::Guarded<std::uint32_t> plan_number(std::vector<std::uint32_t>{1});
    testing::Guarded<QuadCopy> copies(static_cast<std::size_t>(kHeads * 2 * lists.capacity));
    testing::Guarded<on_device::RecallCounts> counts(kHeads);
    on_device::recall_quads({pools.view, scene.stored.view(), lists, retain_from, copies.data(),
                             counts.data(), 2, kHeads, plan_number.data()},
                            nullptr);
    for (int head = 0; head < kHeads; ++head) {
      EXPECT_EQ(counts[static_cast<std::size_t>(head)].in_place > 0, num_slots == 9);
      for (std::uint32_t quad = 0; quad < pools.quads; ++quad) {
        if (pools.directory[static_cast<std::size_t>(head) * pools.quads + quad] == kNoSlot)
          continue;
        const RowStore store = scene.stored.view();
        std::memset(store.row(head, quad * kQuadRows), 0xFF, kQuadRows * store.row_bytes);
      }
    }
    attention.slots = {pools.directory.data(), static_cast<std::int64_t>(pools.quads),
                       pools.slots.data(), pools.stride};
    const Result recalled = attend_on_device(attention);
    EXPECT_EQ(recalled.out, in_place.out);
    EXPECT_EQ(recalled.lse, in_place.lse);
    EXPECT_TRUE(pools.slots.guards_intact() && pools.directory.guards_intact());
  }
}

}  // namespace
}  // namespace clusterkv::recall
