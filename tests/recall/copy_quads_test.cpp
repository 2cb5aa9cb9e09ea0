// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/recall/recall.hpp"
#include "kernels/recall/rules.hpp"
#include "tests/support/stores.hpp"

namespace clusterkv::recall {
namespace {

constexpr int kHeads = 2;
constexpr int kSlots = 12;

void (*copy_quads_of(Backend))(const CopyParams&, int, const QuadCopy*, int) {
  return cpu().copy_quads;
}

class CopyQuads : public ::testing::TestWithParam<testing::OpCase> {
 protected:
  CopyQuads() { stored.fill(random, 0, 512); }

  std::size_t quad_bytes() { return stored.view().row_bytes * kQuadRows; }
  std::size_t stride() { return kSlots * quad_bytes() + 96; }
  std::byte* slot(std::byte* base, int head, std::uint32_t number) {
    return base + static_cast<std::size_t>(head) * stride() + number * quad_bytes();
  }

  testing::Random random{6};
  testing::TestRows stored{GetParam().dtype, GetParam().head_dim, kHeads, 512, random};
  testing::GuardedBytes slots{kHeads * stride()};
};

TEST_P(CopyQuads, CopiesWholeQuadsIntoTheirSlotsOnly) {
  const std::vector<QuadCopy> copies = {{quad_of(stored.row_of(0)), 11},
                                        {quad_of(stored.row_of(508)), 0},
                                        {quad_of(stored.row_of(260)), 5},
                                        {quad_of(stored.row_of(4)), 6}};
  testing::GuardedBytes expected = slots;
  for (const QuadCopy& copy : copies) {
    std::memcpy(slot(expected.data(), 1, copy.slot), stored.view().row(1, copy.quad * kQuadRows),
                quad_bytes());
  }
  copy_quads_of(GetParam().backend)({stored.view(), slots.data(), stride()}, 1, copies.data(),
                                    static_cast<int>(copies.size()));
  EXPECT_TRUE(slots.guards_intact());
  EXPECT_EQ(std::memcmp(expected.data(), slots.data(), slots.size()), 0);
}

TEST_P(CopyQuads, HandlesZeroCopies) {
  const testing::GuardedBytes before = slots;
  copy_quads_of(GetParam().backend)({stored.view(), slots.data(), stride()}, 0, nullptr, 0);
  EXPECT_EQ(std::memcmp(before.data(), slots.data(), slots.size()), 0);
}

INSTANTIATE_TEST_SUITE_P(Ops, CopyQuads, ::testing::ValuesIn(testing::op_cases()),
                         [](const auto& c) { return testing::name_of(c.param); });

}  // namespace
}  // namespace clusterkv::recall
