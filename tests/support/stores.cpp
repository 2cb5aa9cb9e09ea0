// SPDX-License-Identifier: Apache-2.0
#include "tests/support/stores.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "tests/reference/index.hpp"

namespace clusterkv::testing {
namespace {

constexpr std::byte kCanary{0xFF};
constexpr std::size_t kPlanePadding = 64;

reference::SmallFloat format_of(DType dtype) {
  return dtype == DType::kF16 ? reference::kF16Format : reference::kBF16Format;
}

Vec read_elements(DType dtype, const std::byte* from, int count) {
  Vec x;
  for (int i = 0; i < count; ++i) {
    if (dtype == DType::kF32) {
      float value;
      std::memcpy(&value, from + i * 4, 4);
      x.push_back(double{value});
    } else {
      std::uint16_t bits;
      std::memcpy(&bits, from + i * 2, 2);
      x.push_back(reference::decode(format_of(dtype), bits));
    }
  }
  return x;
}

void write_elements(DType dtype, const Vec& x, std::byte* to) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (dtype == DType::kF32) {
      const auto value = static_cast<float>(x[i]);
      std::memcpy(to + i * 4, &value, 4);
    } else {
      const std::uint16_t bits = reference::encode(format_of(dtype), x[i]);
      std::memcpy(to + i * 2, &bits, 2);
    }
  }
}

std::vector<std::uint32_t> random_pages(int used, int all, Random& random) {
  std::vector<std::uint32_t> pages;
  for (const int page : permutation(random, all)) pages.push_back(static_cast<std::uint32_t>(page));
  pages.resize(static_cast<std::size_t>(used));
  return pages;
}

Vec gaussian(Random& random, int count, double scale) {
  Vec x;
  for (int i = 0; i < count; ++i) x.push_back(scale * double{random.normal()});
  return x;
}

}  // namespace

std::string name_of(Backend backend) {
  return backend == Backend::kCpu ? "cpu" : "cuda";
}

std::string name_of(DType dtype) {
  return dtype == DType::kF32 ? "f32" : dtype == DType::kF16 ? "f16" : "bf16";
}

std::string name_of(IndexDType dtype) {
  return dtype == IndexDType::kF32 ? "if32" : dtype == IndexDType::kBF16 ? "ibf16" : "iint8";
}

std::string name_of(Dims dims) {
  const std::string name = "d" + std::to_string(dims.key);
  return dims.key == dims.value ? name : name + "_v" + std::to_string(dims.value);
}

std::string name_of(const OpCase& c) {
  return name_of(c.backend) + "_" + name_of(c.dtype) + "_" + name_of(c.dims());
}

std::vector<OpCase> op_cases() {
  std::vector<OpCase> cases;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int head_dim : {64, 80, 96, 128, 256}) {
      cases.push_back({Backend::kCpu, dtype, head_dim});
    }
  }
  return cases;
}

std::vector<OpCase> value_op_cases() {
  std::vector<OpCase> cases = op_cases();
  for (const OpCase& c : {OpCase{Backend::kCpu, DType::kF32, 64, 256},
                          {Backend::kCpu, DType::kF32, 256, 96},
                          {Backend::kCpu, DType::kF16, 80, 64},
                          {Backend::kCpu, DType::kF16, 128, 80},
                          {Backend::kCpu, DType::kBF16, 96, 128},
                          {Backend::kCpu, DType::kBF16, 128, 64}}) {
    cases.push_back(c);
  }
  return cases;
}

namespace {

TestMemory test_memory = {[](std::size_t bytes) { return operator new(bytes); },
                          [](void* memory) { operator delete(memory); },
                          [](const void*, std::size_t) {}};

}  // namespace

void set_test_memory(const TestMemory& memory) {
  test_memory = memory;
}

GuardedBytes::GuardedBytes(std::size_t bytes)
    : guard_(test_memory.guard_bytes),
      memory_(static_cast<std::byte*>(test_memory.allocate(bytes + 2 * guard_))),
      size_(bytes) {
  std::fill_n(memory_, bytes + 2 * guard_, kCanary);
  test_memory.mark_guard(memory_, guard_);
  test_memory.mark_guard(data() + bytes, guard_);
}

GuardedBytes::GuardedBytes(const GuardedBytes& other) : GuardedBytes(other.size_) {
  std::copy_n(other.memory_, size_ + 2 * guard_, memory_);
}

GuardedBytes::GuardedBytes(GuardedBytes&& other) noexcept
    : guard_(other.guard_),
      memory_(std::exchange(other.memory_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

GuardedBytes& GuardedBytes::operator=(GuardedBytes other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(size_, other.size_);
  return *this;
}

GuardedBytes::~GuardedBytes() {
  if (memory_ != nullptr) test_memory.release(memory_);
}

bool GuardedBytes::guards_intact() const {
  const auto is_canary = [](std::byte b) { return b == kCanary; };
  return std::all_of(memory_, memory_ + guard_, is_canary) &&
         std::all_of(data() + size_, data() + size_ + guard_, is_canary);
}

TestRows::TestRows(DType dtype, Dims dims, int num_kv_heads, std::int64_t num_rows, Random& random,
                   std::size_t row_padding)
    : dtype_(dtype), dims_(dims), num_kv_heads_(num_kv_heads), row_padding_(row_padding) {
  const int used = static_cast<int>((num_rows + kPageRows - 1) / kPageRows);
  num_pages_ = used + 1;
  pages_ = random_pages(used, num_pages_, random);
  memory_ = GuardedBytes(static_cast<std::size_t>(num_kv_heads) * view().head_stride);
}

void TestRows::keep_near(int num_pages) {
  num_near_ = num_pages;
  const RowStore store = view();
  near_ = GuardedBytes(static_cast<std::size_t>(num_kv_heads_) * store.near_stride);
}

RowStore TestRows::view() {
  RowStore store;
  store.base = memory_.data();
  store.row_bytes =
      static_cast<std::size_t>(dims_.key + dims_.value) * size_of(dtype_) + row_padding_;
  store.head_stride =
      static_cast<std::size_t>(num_pages_) * kPageRows * store.row_bytes + kPlanePadding;
  store.dtype = dtype_;
  store.head_dim = dims_.key;
  store.value_dim = dims_.value;
  if (num_near_ == 0) return store;
  store.near = near_.data();
  store.num_near = static_cast<std::uint32_t>(num_near_ * kPageRows);
  store.near_stride = store.num_near * store.row_bytes + 2 * kPlanePadding;
  return store;
}

std::uint32_t TestRows::row_of(std::int64_t row) const {
  return pages_.at(static_cast<std::size_t>(row / kPageRows)) * kPageRows +
         static_cast<std::uint32_t>(row % kPageRows);
}

std::byte* TestRows::bytes(int kv_head, std::int64_t row) {
  return view().row(kv_head, row_of(row));
}

void TestRows::set(int kv_head, std::int64_t row, const Vec& key, const Vec& value) {
  std::byte* to = bytes(kv_head, row);
  write_elements(dtype_, key, to);
  write_elements(dtype_, value, to + static_cast<std::size_t>(dims_.key) * size_of(dtype_));
}

void TestRows::fill(Random& random, std::int64_t first, std::int64_t count, double scale) {
  for (int head = 0; head < num_kv_heads_; ++head) {
    for (std::int64_t row = first; row < first + count; ++row) {
      set(head, row, gaussian(random, dims_.key, scale), gaussian(random, dims_.value, 1.0));
    }
  }
}

void TestRows::poison(int kv_head, std::int64_t row) {
  std::memset(bytes(kv_head, row), 0xFF, view().row_bytes);
}

Vec TestRows::key(int kv_head, std::int64_t row) {
  return read_elements(dtype_, bytes(kv_head, row), dims_.key);
}

Vec TestRows::value(int kv_head, std::int64_t row) {
  const std::size_t offset = static_cast<std::size_t>(dims_.key) * size_of(dtype_);
  return read_elements(dtype_, bytes(kv_head, row) + offset, dims_.value);
}

std::vector<Vec> TestRows::keys(int kv_head, std::int64_t first, int count) {
  std::vector<Vec> result;
  for (int i = 0; i < count; ++i) result.push_back(key(kv_head, first + i));
  return result;
}

std::vector<Vec> TestRows::values(int kv_head, std::int64_t first, int count) {
  std::vector<Vec> result;
  for (int i = 0; i < count; ++i) result.push_back(value(kv_head, first + i));
  return result;
}

bool TestRows::same_but(const GuardedBytes& before,
                        const std::set<std::pair<int, std::int64_t>>& written) {
  GuardedBytes expected = before;
  const std::size_t payload = static_cast<std::size_t>(dims_.key + dims_.value) * size_of(dtype_);
  for (const auto& [kv_head, row] : written) {
    const std::byte* now = bytes(kv_head, row);
    std::memcpy(expected.data() + (now - memory_.data()), now, payload);
  }
  return memory_.guards_intact() &&
         std::equal(expected.data(), expected.data() + expected.size(), memory_.data());
}

// ------------------------------------------------------------------------------------ index

TestIndex::TestIndex(IndexDType dtype, Dims dims, int num_kv_heads, int num_blocks, int num_records)
    : dtype_(dtype),
      dims_(dims),
      num_kv_heads_(num_kv_heads),
      num_blocks_(num_blocks),
      num_records_(num_records) {
  const auto blocks = static_cast<std::size_t>(num_kv_heads * num_blocks);
  const auto records = static_cast<std::size_t>(num_kv_heads * num_records);
  const auto key = static_cast<std::size_t>(dims.key);
  const auto value = static_cast<std::size_t>(dims.value);
  const std::size_t elements = blocks * kBlockClusters * IndexStore::element_bytes(dtype);
  const std::size_t floats = blocks * kBlockClusters * sizeof(float);
  for (const std::size_t bytes :
       {elements * key, elements * value, floats, floats, floats, blocks * (kBlockClusters + 1) * 4,
        records * key * 4, records * value * 4, records * 4}) {
    arrays_.emplace_back(bytes);
  }
}

IndexStore TestIndex::view() {
  IndexStore s;
  s.dtype = dtype_;
  s.head_dim = dims_.key;
  s.value_dim = dims_.value;
  s.num_blocks = num_blocks_;
  s.num_records = num_records_;
  s.centroids = arrays_[0].data();
  s.value_means = arrays_[1].data();
  s.centroid_scale = arrays_[2].as<float>();
  s.value_scale = arrays_[3].as<float>();
  s.spread = arrays_[4].as<float>();
  s.offset = arrays_[5].as<std::uint32_t>();
  s.profile = arrays_[6].as<float>();
  s.value_sum = arrays_[7].as<float>();
  s.used = arrays_[8].as<std::int32_t>();
  return s;
}

void TestIndex::write(const Vec& x, std::byte* to, float* scale) const {
  *scale = 1.0F;
  if (dtype_ != IndexDType::kInt8) {
    write_elements(dtype_ == IndexDType::kF32 ? DType::kF32 : DType::kBF16, x, to);
    return;
  }
  const reference::Int8Row row = reference::int8_row(x);
  *scale = static_cast<float>(row.scale);
  for (std::size_t d = 0; d < x.size(); ++d) to[d] = static_cast<std::byte>(row.codes[d]);
}

Vec TestIndex::read(const std::byte* from, int dim, float scale) const {
  if (dtype_ != IndexDType::kInt8) {
    return read_elements(dtype_ == IndexDType::kF32 ? DType::kF32 : DType::kBF16, from, dim);
  }
  Vec x;
  for (int d = 0; d < dim; ++d) {
    x.push_back(double{scale} * static_cast<std::int8_t>(std::to_integer<int>(from[d])));
  }
  return x;
}

std::size_t TestIndex::at(int kv_head, std::uint32_t block, int cluster) {
  return static_cast<std::size_t>(view().plane_block(kv_head, block) * kBlockClusters + cluster);
}

std::byte* TestIndex::centroid_at(std::size_t i) {
  return view().centroids + i * (view().centroid_block_bytes() / kBlockClusters);
}

std::byte* TestIndex::value_mean_at(std::size_t i) {
  return view().value_means + i * (view().mean_block_bytes() / kBlockClusters);
}

void TestIndex::set_cluster(int kv_head, std::uint32_t block, int cluster, const Vec& mean_key,
                            const Vec& mean_value, double spread) {
  const IndexStore s = view();
  const std::size_t i = at(kv_head, block, cluster);
  write(mean_key, centroid_at(i), s.centroid_scale + i);
  write(mean_value, value_mean_at(i), s.value_scale + i);
  s.spread[i] = static_cast<float>(spread);
}

Vec TestIndex::centroid(int kv_head, std::uint32_t block, int cluster) {
  const std::size_t i = at(kv_head, block, cluster);
  return read(centroid_at(i), dims_.key, view().centroid_scale[i]);
}

Vec TestIndex::value_mean(int kv_head, std::uint32_t block, int cluster) {
  const std::size_t i = at(kv_head, block, cluster);
  return read(value_mean_at(i), dims_.value, view().value_scale[i]);
}

bool TestIndex::guards_intact() const {
  return std::all_of(arrays_.begin(), arrays_.end(),
                     [](const GuardedBytes& array) { return array.guards_intact(); });
}

bool TestIndex::same_block(const std::vector<GuardedBytes>& before, int kv_head,
                           std::uint32_t block) {
  const auto blocks = static_cast<std::size_t>(num_kv_heads_ * num_blocks_);
  const auto at = static_cast<std::size_t>(view().plane_block(kv_head, block));
  for (std::size_t i = 0; i < 6; ++i) {  // centroids .. offset
    const std::size_t bytes = arrays_[i].size() / blocks;
    if (std::memcmp(before[i].data() + at * bytes, arrays_[i].data() + at * bytes, bytes) != 0) {
      return false;
    }
  }
  return true;
}

bool TestIndex::same_all(const std::vector<GuardedBytes>& other) const {
  for (std::size_t i = 0; i < arrays_.size(); ++i) {
    if (std::memcmp(other[i].data(), arrays_[i].data(), arrays_[i].size()) != 0) return false;
  }
  return true;
}

// ------------------------------------------------------------------------------------ scene

namespace {

std::int64_t rows_of(const SceneShape& shape) {
  std::int64_t rows = 0;
  for (const SegmentShape& segment : shape.segments) rows += segment.num_rows;
  return rows;
}

int blocks_of(int num_clusters) {
  return (num_clusters + kBlockClusters - 1) / kBlockClusters;
}

int blocks_of(const SceneShape& shape) {
  int blocks = 0;
  for (const SegmentShape& segment : shape.segments) blocks += blocks_of(segment.num_clusters);
  return blocks;
}

}  // namespace

Scene::Scene(const SceneShape& scene_shape, std::uint64_t seed)
    : shape(scene_shape),
      random(seed),
      first_pending(shape.num_sinks + 250),  // so that pending crosses a page
      num_stored(rows_of(shape)),
      live(shape.op.dtype, shape.op.dims(), shape.num_kv_heads, first_pending + shape.num_pending,
           random),
      stored(shape.op.dtype, shape.op.dims(), shape.num_kv_heads, num_stored, random),
      index(shape.index_dtype, shape.op.dims(), shape.num_kv_heads, blocks_of(shape) + 2,
            static_cast<int>(shape.segments.size()) + 2),
      clusters(static_cast<std::size_t>(shape.num_kv_heads)) {
  if (shape.fill_rows) {
    live.fill(random, 0, shape.num_sinks);
    live.fill(random, first_pending, shape.num_pending);
    stored.fill(random, 0, num_stored);
  }
  blocks = random_pages(blocks_of(shape), blocks_of(shape) + 2, random);
  for (std::size_t i = 0; i < shape.segments.size(); ++i) add_segment(i);
  query = random.normals(static_cast<std::size_t>(shape.num_q_heads * shape.op.head_dim));
}

void Scene::add_segment(std::size_t number) {
  SegmentView segment{};
  segment.record = static_cast<std::uint32_t>((number + 1) % (shape.segments.size() + 2));
  segment.num_rows = shape.segments[number].num_rows;
  segment.num_blocks = blocks_of(shape.segments[number].num_clusters);
  if (number > 0) {
    const SegmentView& last = segments.back();
    segment.first_block = last.first_block + last.num_blocks;
    segment.first_row = last.first_row + last.num_rows;
  }
  segments.push_back(segment);
  for (int head = 0; head < shape.num_kv_heads; ++head) {
    add_clusters(head, number);
    float* profile = index.view().record_profile(head, segment.record);
    float* sum = index.view().record_value_sum(head, segment.record);
    const auto rows = static_cast<float>(segment.first_row + segment.num_rows);
    for (int d = 0; d < shape.op.head_dim; ++d) {
      profile[d] = d % 7 == 2 ? 0.0F : std::abs(random.normal());
    }
    for (int d = 0; d < shape.op.dims().value; ++d) sum[d] = rows * random.normal();
  }
}

void Scene::add_clusters(int kv_head, std::size_t number) {
  const SegmentView& segment = segments[number];
  const int most = std::min(shape.segments[number].num_clusters, segment.num_rows);
  const int used = random.between(std::max(1, most * 3 / 4), most);
  *index.view().record_used(kv_head, segment.record) = used;
  // Cuts between rows: `used` non-empty runs.
  std::vector<int> cuts = permutation(random, segment.num_rows - 1);
  cuts.resize(static_cast<std::size_t>(used - 1));
  for (int& cut : cuts) ++cut;
  cuts.insert(cuts.end(), {0, segment.num_rows});
  std::sort(cuts.begin(), cuts.end());
  for (int c = 0; c < segment.num_blocks * kBlockClusters; ++c) {
    const auto first = static_cast<std::size_t>(std::min(c, used));
    const int id = segment.first_block * kBlockClusters + c;
    std::uint32_t* offset = index.view().block_offset(kv_head, block_of(id)) + c % kBlockClusters;
    offset[0] = static_cast<std::uint32_t>(segment.first_row + cuts[first]);
    offset[1] =
        c < used ? static_cast<std::uint32_t>(segment.first_row + cuts[first + 1]) : offset[0];
    if (c >= used) continue;
    index.set_cluster(
        kv_head, block_of(id), c % kBlockClusters, gaussian(random, shape.op.head_dim, 1.0),
        gaussian(random, shape.op.dims().value, 1.0), std::abs(double{random.normal()}));
    clusters[static_cast<std::size_t>(kv_head)].push_back({id, segment.first_row + cuts[first],
                                                           cuts[first + 1] - cuts[first],
                                                           static_cast<int>(number)});
  }
}

SequenceView Scene::view(int budget, int query_row) const {
  SequenceView v{};
  v.row_pages = stored.pages();
  v.live_pages = live.pages();
  v.first_pending = first_pending;
  v.segments = segments.data();
  v.blocks = blocks.data();
  v.num_segments = static_cast<std::int32_t>(segments.size());
  v.num_blocks = static_cast<std::int32_t>(blocks.size());
  v.num_sinks = shape.num_sinks;
  v.num_pending = shape.num_pending;
  v.num_stored = num_stored;
  v.budget_tokens = budget;
  v.query_row = query_row;
  return v;
}

Vec Scene::query_of(int q_head) const {
  const auto first = query.begin() + static_cast<std::ptrdiff_t>(q_head) * shape.op.head_dim;
  return {first, first + shape.op.head_dim};
}

}  // namespace clusterkv::testing
