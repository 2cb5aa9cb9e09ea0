// SPDX-License-Identifier: Apache-2.0
//
// The device's index ops beside the CPU's, which the other suites compare with fp64: the same bits.
#include <gtest/gtest.h>

#include <tuple>

#include "kernels/index/cuda/index_ops.hpp"
#include "tests/index/fixture.hpp"
#include "tests/support/device.hpp"

namespace clusterkv::index {
namespace {

namespace on_device = testing::on_device;
using testing::TestIndex;
using testing::TestRows;

constexpr int kHeads = 2;
constexpr int kBlocks = 12;
constexpr int kRecords = 4;

using Param = std::tuple<DType, testing::Dims, IndexDType>;

/// Two segments of two KV heads in a live store, labelled at random with some labels unused.
class DeviceIndex : public testing::DeviceTest, public ::testing::WithParamInterface<Param> {
 protected:
  struct Job {
    SegmentSource source;
    SegmentTarget target;
    int num_clusters;
    std::vector<std::int32_t> order, offset;
  };

  DeviceIndex() : live_(dtype(), dims(), kHeads, kFirstLive + 300, random_) {
    live_.fill(random_, kFirstLive, 300);
    add_segment({2, 700, 200, 90, {7, 2}}, kFirstLive);
    add_segment({0, 900, 100, 40, {5}}, kFirstLive + 200);
  }
  static DType dtype() { return std::get<0>(GetParam()); }
  static testing::Dims dims() { return std::get<1>(GetParam()); }
  static IndexDType index_dtype() { return std::get<2>(GetParam()); }

  struct Place {
    std::uint32_t record;
    std::int64_t first_row;
    int num_tokens;
    int num_clusters;
    std::vector<std::uint32_t> blocks;
  };
  void add_segment(Place place, std::int64_t first_live) {
    blocks_.push_back(std::make_unique<std::vector<std::uint32_t>>(place.blocks));
    for (int head = 0; head < kHeads; ++head) {
      std::vector<int> labels = random_labels(random_, place.num_tokens, place.num_clusters);
      for (int& label : labels) label = label % 7 == 3 ? 0 : label;  // leaves labels unused
      SegmentTarget target{};
      target.segment = {place.record, 0, static_cast<std::int32_t>(place.blocks.size()),
                        place.num_tokens, place.first_row};
      target.blocks = blocks_.back()->data();
      target.row_pages = row_pages_.data();
      jobs_.push_back({{live_.pages(), first_live, kFirstToken, place.num_tokens, head},
                       target,
                       place.num_clusters,
                       reference::order_of(labels),
                       offsets_of(labels, place.num_clusters)});
    }
  }

  /// The jobs as the device takes them, with scratch.
  struct DeviceJobs {
    explicit DeviceJobs(const std::vector<Job>& jobs, testing::Dims dims) {
      for (const Job& job : jobs) {
        const auto clusters = static_cast<std::size_t>(job.num_clusters);
        used.push_back(std::make_unique<testing::Guarded<std::int32_t>>(clusters));
        for (const int dim : {dims.key, dims.value}) {
          floats.push_back(
              std::make_unique<testing::Guarded<float>>(clusters * static_cast<std::size_t>(dim)));
        }
        list.push_back({job.source, job.target, job.num_clusters, job.order.data(),
                        job.offset.data(), used.back()->data(), floats[floats.size() - 2]->data(),
                        floats.back()->data()});
      }
    }
    std::vector<std::unique_ptr<testing::Guarded<std::int32_t>>> used;
    std::vector<std::unique_ptr<testing::Guarded<float>>> floats;
    std::vector<on_device::IndexJob> list;
  };
  [[nodiscard]] on_device::IndexShape shape() const {
    return {static_cast<int>(jobs_.size()), 200, 90, nullptr};
  }

  /// All jobs, on both: the same bits.
  void build(TestIndex& cpu, TestIndex& device, const DeviceJobs& jobs) {
    for (const Job& job : jobs_) {
      std::vector<float> variance(static_cast<std::size_t>(job.num_clusters * dims().key));
      index::cpu().build_index({live_.view(), cpu.view(), job.num_clusters, job.order.data(),
                                job.offset.data(), variance.data()},
                               job.source, job.target);
    }
    on_device::build_index(live_.view(), device.view(), jobs.list.data(), shape());
    EXPECT_TRUE(device.guards_intact());
    EXPECT_TRUE(device.same_all(cpu.snapshot()));
  }

  testing::Random random_{43};
  TestRows live_;
  std::vector<std::unique_ptr<std::vector<std::uint32_t>>> blocks_;
  std::vector<std::uint32_t> row_pages_ = {3, 1, 4, 0};
  std::vector<Job> jobs_;
};

TEST_P(DeviceIndex, BuildsTheBitsOfTheCpu) {
  TestIndex cpu(index_dtype(), dims(), kHeads, kBlocks, kRecords);
  TestIndex device(index_dtype(), dims(), kHeads, kBlocks, kRecords);
  const DeviceJobs jobs(jobs_, dims());
  build(cpu, device, jobs);

  // Jobs of both heads of segment 0, then of segment 1, which comes after it.
  const std::vector<std::uint32_t> previous = {2, 2, 2, 2};
  for (const Job& job : jobs_) {
    if (job.target.segment.record != 2) {
      index::cpu().add_value_sum(cpu.view(), job.source.kv_head, job.target.segment.record, 2);
    }
  }
  on_device::add_value_sums(device.view(), jobs.list.data(), previous.data(), kHeads, shape());
  EXPECT_TRUE(device.same_all(cpu.snapshot()));
}

TEST_P(DeviceIndex, StoresRowsInTheOrderGiven) {
  for (const bool keeps_rows : {true, false}) {
    TestRows cpu(dtype(), dims(), kHeads, 1200, random_);
    TestRows device = cpu;
    const std::size_t rows = 5 * kPageRows;
    testing::Guarded<std::uint32_t> cpu_positions(kHeads * rows), positions(kHeads * rows);
    StoreParams p{live_.view(), cpu.view(), cpu_positions.data(), rows, nullptr};
    if (!keeps_rows) p.stored.base = nullptr;
    for (const Job& job : jobs_) {
      p.order = job.order.data();
      index::cpu().store_segment(p, job.source, job.target);
    }
    p.stored = device.view();
    if (!keeps_rows) p.stored.base = nullptr;
    p.positions = positions.data();
    const DeviceJobs jobs(jobs_, dims());
    on_device::store_segments(p, jobs.list.data(), shape());
    EXPECT_EQ(cpu_positions.copy(), positions.copy());
    EXPECT_TRUE(device.same_but(cpu.snapshot(), {}));
  }
}

TEST_P(DeviceIndex, NanRowsAndSegmentsOfOneTokenAreThoseOfTheCpu) {
  jobs_.clear();
  add_segment({1, 700, 40, 9, {3}}, kFirstLive);
  add_segment({3, 760, 1, 1, {8}}, kFirstLive + 40);
  live_.poison(0, kFirstLive + 11);
  TestIndex cpu(index_dtype(), dims(), kHeads, kBlocks, kRecords);
  TestIndex device(index_dtype(), dims(), kHeads, kBlocks, kRecords);
  const DeviceJobs jobs(jobs_, dims());
  build(cpu, device, jobs);
}

std::string name_of_param(const ::testing::TestParamInfo<Param>& info) {
  const auto& [dtype, dims, index_dtype] = info.param;
  return testing::name_of(dtype) + "_" + testing::name_of(dims) + "_" +
         testing::name_of(index_dtype);
}
INSTANTIATE_TEST_SUITE_P(
    Ops, DeviceIndex,
    ::testing::Combine(::testing::Values(DType::kF16, DType::kBF16),
                       ::testing::Values(64, 80, 96, 128, 256, testing::Dims(64, 256),
                                         testing::Dims(128, 80)),
                       ::testing::Values(IndexDType::kInt8, IndexDType::kBF16, IndexDType::kF32)),
    name_of_param);

}  // namespace
}  // namespace clusterkv::index
