// SPDX-License-Identifier: Apache-2.0
//
// The suites of the public API on the CUDA backend, unchanged: this takes the place of the CPU backend, so
// that their tensors of host memory and their calls that return with results are served by a device. A
// program of tests on a device has no memory that the device does not see.
#include <map>
#include <memory>
#include <vector>

#include "src/cuda/stages.hpp"
#include "tests/support/harness.hpp"

namespace clusterkv {
namespace {

namespace on_device = CLUSTERKV_DEVICE;

class Memory {
 public:
  Memory(std::size_t bytes, Device::Kind kind) : bytes_(bytes), kind_(kind) {
    data_ = static_cast<std::byte*>(on_device::device_memory().allocate(bytes, 64, {kind}));
  }
  ~Memory() { on_device::device_memory().deallocate(data_, bytes_, 64, {kind_}); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return bytes_; }

 private:
  std::size_t bytes_;
  Device::Kind kind_;
  std::byte* data_;
};

/// What the device sees, or does not.
TensorView seen(TensorView view) {
  view.device = {view.device.kind == Device::kHost ? Device::kPinned : Device::kHost};
  return view;
}
AttentionOut seen(const AttentionOut& out) {
  return {seen(out.out), out.lse.empty() ? out.lse : seen(out.lse)};
}
Selection seen(const Selection& selection) {
  return {seen(selection.cluster_ids), seen(selection.row_counts)};
}

class DeviceStages final : public Stages {
 public:
  DeviceStages(const CacheConfig& config, Rows rows)
      : config_(config), rows_(rows), device_(config, {.backend = Backend::kCuda}, rows) {}

  static MemoryNeeds needs(const CacheConfig& config, const PlanLimits& limits, Rows rows) {
    MemoryNeeds needs = on_device::CudaStages::needs(config, limits, rows);
    needs.pinned_bytes = needs.workspace_pinned_bytes = 0;
    return needs;
  }

  void check_stream(const Stream& stream) const override {
    if (stream.backend != Backend::kCpu) {
      throw BackendUnavailable("stream.backend: kCuda, expected kCpu as the cache's");
    }
  }
  [[nodiscard]] bool is_capturing(const Stream&) const override { return false; }

  void open_plan(DecodePlan::Impl& plan, const Workspace&, const Stream&) override {
    const MemoryNeeds needs = on_device::CudaStages::needs(config_, plan.limits, rows_);
    PlanOf& own = plans_[&plan];
    own.workspace = std::make_unique<Memory>(needs.workspace_bytes, Device::kCuda);
    own.pinned = std::make_unique<Memory>(needs.workspace_pinned_bytes, Device::kPinned);
    device_.open_plan(
        plan,
        {own.workspace->data(), own.workspace->size(), own.pinned->data(), own.pinned->size()},
        stream_);
    wait();
  }
  void reserve_seal(int num_tokens, int num_clusters) override {
    device_.reserve_seal(num_tokens, num_clusters);
  }
  void begin_step(DecodePlan::Impl& plan, std::span<const StaleQuads> stale,
                  const Stream&) override {
    device_.begin_step(plan, stale, stream_);
    wait();
  }
  bool all_finite(const TensorView& tensor, std::int64_t first, std::int64_t count) override {
    return device_.all_finite(seen(tensor), first, count);
  }
  void append(const LayerCall& call, const TensorView& key, const TensorView& value) override {
    device_.append(on_stream(call), seen(key), value.empty() ? value : seen(value));
    wait();
  }

  void take_query(const LayerCall& call, const TensorView& query) override {
    device_.take_query(on_stream(call), seen(query));
    wait();
  }
  void score(const LayerCall& call) override { device_.score(on_stream(call)); }
  void choose(const LayerCall& call) override { device_.choose(on_stream(call)); }
  void adopt(const LayerCall& call, const Selection& selection) override {
    device_.adopt(on_stream(call), seen(selection));
  }
  void recall(const LayerCall& call) override { device_.recall(on_stream(call)); }
  void prefetch(const LayerCall& call, const TensorView& query) override {
    device_.prefetch(on_stream(call), seen(query));
    on_device::wait_for_all();  // the query is the caller's
  }
  void attend(const LayerCall& call, const AttentionOut& out, const TensorView& sink_logits,
              Part part) override {
    device_.attend(on_stream(call), seen(out),
                   sink_logits.empty() ? sink_logits : seen(sink_logits), part);
    wait();
  }
  [[nodiscard]] Selection selection(const LayerCall& call) const override {
    const Selection there = device_.selection(on_stream(call));
    Selection here = there;
    PlanOf& own = plans_.at(&call.plan);
    own.lists.clear();
    for (TensorView* view : {&here.cluster_ids, &here.row_counts}) {
      const auto bytes =
          static_cast<std::size_t>(view->shape[0] * view->stride[0]) * size_of(view->dtype);
      own.lists.push_back(std::make_unique<Memory>(bytes, Device::kPinned));
      on_device::copy_async(own.lists.back()->data(), view->data, bytes, stream_.handle);
      view->data = own.lists.back()->data();
      view->device = {};
    }
    wait();
    return here;
  }

  void prepare_copy(std::uint32_t page, PageUse use) const override {
    device_.prepare_copy(page, use);
  }
  void copy_pages(std::span<const PageCopy> rows, std::span<const PageCopy> live,
                  const Stream&) override {
    device_.copy_pages(rows, live, stream_);
    wait();
  }
  void restore_rows(const RestoredRows& rows, const Stream&) override {
    device_.restore_rows(rows, stream_);
    wait();
  }
  void visit_parts(const Sequence& sequence, PartVisitor& visitor, const Stream&) override {
    device_.visit_parts(sequence, visitor, stream_);
  }
  void check_parts(const Sequence& sequence, const Stream&) const override {
    device_.check_parts(sequence, stream_);
  }

  void token_ids(const LayerCall& call, const Selection& selection, const TensorView& ids,
                 const TensorView& counts) const override {
    device_.token_ids(on_stream(call), seen(selection), seen(ids), seen(counts));
    wait();
  }
  void to_paged(const LayerCall& call, const Selection& selection,
                const PagedTarget& target) const override {
    const TensorView table = seen(target.block_table);
    const TensorView indptr = seen(target.indptr);
    const TensorView indices = seen(target.indices);
    device_.to_paged(on_stream(call), seen(selection),
                     {table, target.block_tokens, indptr, indices});
    wait();
  }
  void read_rows(const RowRange& range, const Sequence& sequence, const TensorView& key,
                 const TensorView& value, const Stream&) const override {
    device_.read_rows(range, sequence, seen(key), seen(value), stream_);
    wait();
  }
  void add_counts(CacheStats& stats) const override { device_.add_counts(stats); }

 private:
  struct PlanOf {
    std::unique_ptr<Memory> workspace, pinned;
    std::vector<std::unique_ptr<Memory>> lists;
  };

  [[nodiscard]] LayerCall on_stream(const LayerCall& call) const {
    return {call.layer, call.plan, stream_, call.dense, call.adopted, call.ahead};
  }
  void wait() const { on_device::wait_for(stream_.handle); }

  CacheConfig config_;
  Rows rows_;
  on_device::SideStream own_stream_;
  Stream stream_{Backend::kCuda, own_stream_.get(), nullptr};
  mutable std::map<const DecodePlan::Impl*, PlanOf> plans_;
  on_device::CudaStages device_;  // last: it waits for what the others are used by
};

[[maybe_unused]] const bool kRowsAreHalf = [] {
  testing::small_model_dtype = DType::kF16;
  return true;
}();

}  // namespace

const BackendInfo& cpu_backend() {
  static const BackendInfo kInfo{.missing = nullptr,
                                 .residency = Residency::kHost,
                                 .find_fault = cuda_backend().find_fault,
                                 .find_needs = DeviceStages::needs,
                                 .make = [](const CacheConfig& config, const Resources&,
                                            Rows rows) -> std::unique_ptr<Stages> {
                                   return std::make_unique<DeviceStages>(config, rows);
                                 },
                                 .memory = default_memory_resource};
  return kInfo;
}

}  // namespace clusterkv
