// SPDX-License-Identifier: Apache-2.0
//
// Buffers as src/ hands them to kernels, made hostile: pages in random order with unused ones in
// between, padding after rows and planes, guards around, and every byte nobody wrote is 0xFF, which
// is NaN as f32, f16 and bf16 and an impossible page or slot.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/views.hpp"
#include "tests/reference/numeric.hpp"
#include "tests/support/random.hpp"

namespace clusterkv::testing {

using reference::Vec;

/// Elements of a key and of a value.
struct Dims {
  Dims(int both) : key(both), value(both) {}
  Dims(int of_key, int of_value) : key(of_key), value(of_value) {}
  int key;
  int value;
};
std::string name_of(Dims dims);  ///< d128, d128_v64

/// What every op suite runs over.
struct OpCase {
  Backend backend;
  DType dtype;
  int head_dim;
  int value_dim = 0;  ///< 0: head_dim
  [[nodiscard]] Dims dims() const { return {head_dim, value_dim == 0 ? head_dim : value_dim}; }
};
std::string name_of(Backend backend);
std::string name_of(DType dtype);
std::string name_of(IndexDType dtype);
std::string name_of(const OpCase& c);  ///< cpu_bf16_d128, cpu_bf16_d128_v64
/// All backends of this build x dtypes x head_dims.
std::vector<OpCase> op_cases();
/// And some with values of another length, for ops that see values.
std::vector<OpCase> value_op_cases();

/// Where guarded memory comes from. Device suites name their own, so that what watches a device or takes
/// its place knows each buffer.
struct TestMemory {
  void* (*allocate)(std::size_t bytes);
  void (*release)(void* memory);
  void (*mark_guard)(const void* memory, std::size_t bytes);  ///< nobody may touch it
  std::size_t guard_bytes = 4096;  ///< 0 where something else knows where a buffer ends
};
/// Before the first GuardedBytes.
void set_test_memory(const TestMemory& memory);

/// Memory with canaries on both sides, all 0xFF.
class GuardedBytes {
 public:
  explicit GuardedBytes(std::size_t bytes = 0);
  GuardedBytes(const GuardedBytes& other);
  GuardedBytes(GuardedBytes&& other) noexcept;
  GuardedBytes& operator=(GuardedBytes other) noexcept;
  ~GuardedBytes();
  std::byte* data() { return memory_ + guard_; }
  [[nodiscard]] const std::byte* data() const { return memory_ + guard_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] bool guards_intact() const;
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }

 private:
  std::size_t guard_;
  std::byte* memory_;
  std::size_t size_;
};

/// A float array of a kernel: NaN until written, with guards.
template <class T>
class Guarded {
 public:
  explicit Guarded(std::size_t count = 0) : bytes_(count * sizeof(T)), count_(count) {}
  explicit Guarded(const std::vector<T>& values) : Guarded(values.size()) {
    std::copy(values.begin(), values.end(), data());
  }
  T* data() { return bytes_.template as<T>(); }
  T& operator[](std::size_t i) { return data()[i]; }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] bool guards_intact() const { return bytes_.guards_intact(); }
  std::vector<T> copy() { return {data(), data() + count_}; }

 private:
  GuardedBytes bytes_;
  std::size_t count_;
};

/// Rows of one layer behind a page table.
class TestRows {
 public:
  static constexpr std::size_t kRowPadding = 32;

  TestRows(DType dtype, Dims dims, int num_kv_heads, std::int64_t num_rows, Random& random,
           std::size_t row_padding = kRowPadding);

  /// From now on the first pages of the store lie apart from the others.
  void keep_near(int num_pages);

  [[nodiscard]] RowStore view();
  [[nodiscard]] const std::uint32_t* pages() const { return pages_.data(); }
  [[nodiscard]] int num_pages() const { return num_pages_; }  ///< of the store, unused ones too
  [[nodiscard]] std::uint32_t row_of(std::int64_t row) const;
  std::byte* bytes(int kv_head, std::int64_t row);

  void set(int kv_head, std::int64_t row, const Vec& key, const Vec& value);
  void fill(Random& random, std::int64_t first, std::int64_t count, double scale = 1.0);
  void poison(int kv_head, std::int64_t row);  ///< all NaN
  [[nodiscard]] Vec key(int kv_head, std::int64_t row);
  [[nodiscard]] Vec value(int kv_head, std::int64_t row);
  [[nodiscard]] std::vector<Vec> keys(int kv_head, std::int64_t first, int count);
  [[nodiscard]] std::vector<Vec> values(int kv_head, std::int64_t first, int count);

  [[nodiscard]] GuardedBytes snapshot() const { return memory_; }
  /// Whether nothing changed but the key and value of these (kv_head, logical row).
  [[nodiscard]] bool same_but(const GuardedBytes& before,
                              const std::set<std::pair<int, std::int64_t>>& written);

 private:
  DType dtype_;
  Dims dims_;
  int num_kv_heads_;
  std::size_t row_padding_;
  int num_pages_;
  std::vector<std::uint32_t> pages_;
  GuardedBytes memory_;
  int num_near_ = 0;  ///< pages
  GuardedBytes near_;
};

/// The index of one layer.
class TestIndex {
 public:
  TestIndex(IndexDType dtype, Dims dims, int num_kv_heads, int num_blocks, int num_records);

  [[nodiscard]] IndexStore view();
  void set_cluster(int kv_head, std::uint32_t block, int cluster, const Vec& mean_key,
                   const Vec& mean_value, double spread);
  [[nodiscard]] Vec centroid(int kv_head, std::uint32_t block, int cluster);
  [[nodiscard]] Vec value_mean(int kv_head, std::uint32_t block, int cluster);
  /// Of the arrays [kv_head, block, cluster].
  [[nodiscard]] std::size_t at(int kv_head, std::uint32_t block, int cluster);
  [[nodiscard]] bool guards_intact() const;
  [[nodiscard]] std::vector<GuardedBytes> snapshot() const { return arrays_; }
  [[nodiscard]] bool same_all(const std::vector<GuardedBytes>& other) const;
  /// Whether the index bytes of a block and head are as they were.
  [[nodiscard]] bool same_block(const std::vector<GuardedBytes>& before, int kv_head,
                                std::uint32_t block);

 private:
  void write(const Vec& x, std::byte* to, float* scale) const;
  Vec read(const std::byte* from, int dim, float scale) const;
  std::byte* centroid_at(std::size_t i);
  std::byte* value_mean_at(std::size_t i);

  IndexDType dtype_;
  Dims dims_;
  int num_kv_heads_;
  int num_blocks_;
  int num_records_;
  std::vector<GuardedBytes> arrays_;
};

/// Parts of a sequence. Sizes of clusters are drawn; some are empty and dropped.
struct SegmentShape {
  int num_clusters;
  int num_rows;
};
struct SceneShape {
  OpCase op{};
  IndexDType index_dtype = IndexDType::kF32;
  int num_q_heads = 4;
  int num_kv_heads = 2;
  int num_sinks = 4;
  int num_pending = 11;
  std::vector<SegmentShape> segments;
  bool fill_rows = true;  ///< false: rows stay NaN
};

/// One sequence with everything that select and attend read, filled with random numbers.
struct Scene {
  Scene(const SceneShape& shape, std::uint64_t seed);

  struct Cluster {
    int id;
    std::int64_t first_row;  ///< logical stored row
    int size;
    int segment;
  };
  [[nodiscard]] SequenceView view(int budget, int query_row = 0) const;
  [[nodiscard]] std::uint32_t block_of(int cluster) const {
    return blocks[static_cast<std::size_t>(cluster / kBlockClusters)];
  }
  [[nodiscard]] int num_clusters() const {  ///< ids, unused ones too
    return static_cast<int>(blocks.size()) * kBlockClusters;
  }
  [[nodiscard]] Vec query_of(int q_head) const;
  [[nodiscard]] int group() const { return shape.num_q_heads / shape.num_kv_heads; }

  SceneShape shape;
  Random random;
  std::int64_t first_pending;
  std::int64_t num_stored;
  TestRows live;
  TestRows stored;
  TestIndex index;
  std::vector<std::uint32_t> blocks;
  std::vector<SegmentView> segments;
  std::vector<std::vector<Cluster>> clusters;  ///< [kv_head], those with rows
  std::vector<float> query;                    ///< [q_head, head_dim] of query row 0

 private:
  void add_segment(std::size_t number);
  void add_clusters(int kv_head, std::size_t number);
};

}  // namespace clusterkv::testing
