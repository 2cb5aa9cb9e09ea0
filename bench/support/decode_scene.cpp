// SPDX-License-Identifier: Apache-2.0
#include "bench/support/decode_scene.hpp"

#include <algorithm>
#include <cmath>
#include <random>

namespace clusterkv::bench {
namespace {

constexpr int kHeads = DecodeScene::kKvHeads;
constexpr int kDim = DecodeScene::kHeadDim;

std::size_t sequence_blocks(const SceneShape& shape) {
  return static_cast<std::size_t>(shape.context / DecodeScene::kSegment) * DecodeScene::kClusters /
         kBlockClusters;
}
std::size_t all_blocks(const SceneShape& shape) {
  return sequence_blocks(shape) * static_cast<std::size_t>(shape.batch);
}
std::size_t segments_of(const SceneShape& shape) {
  return static_cast<std::size_t>(shape.context / DecodeScene::kSegment * shape.batch);
}
std::size_t clusters_of(const SceneShape& shape) {
  return kHeads * all_blocks(shape) * kBlockClusters;
}
std::size_t pages_of(const SceneShape& shape) {
  return static_cast<std::size_t>(shape.context) / kPageRows;
}
std::size_t rows_of(const SceneShape& shape) {
  return static_cast<std::size_t>(shape.context) * static_cast<std::size_t>(shape.batch);
}
/// Sinks are in the first page of a sequence's live rows, pending rows in the second.
constexpr std::size_t kLivePages = 2;
std::size_t live_rows(const SceneShape& shape) {
  return kLivePages * kPageRows * static_cast<std::size_t>(shape.batch);
}
std::size_t entries_of(const SceneShape& shape) {
  return static_cast<std::size_t>(shape.batch * kHeads * shape.budget);
}
std::size_t lists_of(const SceneShape& shape) {
  return static_cast<std::size_t>(shape.batch * kHeads);
}
std::size_t slots_of(const SceneShape& shape) {  // of a KV head
  return shape.host_rows ? static_cast<std::size_t>(2 * shape.budget * shape.batch) : 1;
}
std::size_t quads_of(const SceneShape& shape) {
  return shape.host_rows ? rows_of(shape) / kQuadRows : 1;
}

std::size_t near_rows_of(const SceneShape& shape) {
  return rows_of(shape) / kPageRows * static_cast<std::size_t>(shape.near_percent) / 100 *
         kPageRows;
}
std::vector<on_device::QuadRange> dropped_by_percent(const SceneShape& shape) {
  const std::size_t near = near_rows_of(shape) / kQuadRows;
  std::vector<on_device::QuadRange> ranges;
  for (std::size_t percent = 0; percent <= 100; ++percent) {
    const std::size_t count = (quads_of(shape) - near) * percent / 100;
    ranges.push_back({static_cast<std::uint32_t>(near), static_cast<std::uint32_t>(count)});
  }
  return ranges;
}

std::vector<float> random_floats(std::size_t count, float low, float high) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> values(std::min(count, std::size_t{1} << 20));
  for (float& x : values) x = uniform(random);
  return values;
}

std::vector<std::int8_t> random_bytes(std::size_t count) {
  std::mt19937 random(4);
  std::vector<std::int8_t> values(std::min(count, std::size_t{1} << 22));
  for (std::int8_t& x : values)
    x = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
  return values;
}

/// Clusters of 8 - x and 8 + x rows in turn, x = 0 .. 6.
std::vector<std::uint32_t> make_offsets(const SceneShape& shape) {
  std::mt19937 random(6);
  std::vector<std::uint32_t> offset;
  for (int head = 0; head < kHeads; ++head) {
    for (int sequence = 0; sequence < shape.batch; ++sequence) {
      std::uint32_t row = 0;
      for (std::size_t block = 0; block < sequence_blocks(shape); ++block) {
        offset.push_back(row);
        for (int pair = 0; pair < kBlockClusters / 2; ++pair) {
          const auto x = static_cast<std::uint32_t>(random() % 7);
          offset.push_back(row + 8 - x);
          offset.push_back(row += 16);
        }
      }
    }
  }
  return offset;
}

std::vector<std::uint32_t> counting(std::size_t count) {
  std::vector<std::uint32_t> numbers(count);
  for (std::size_t i = 0; i < count; ++i) numbers[i] = static_cast<std::uint32_t>(i);
  return numbers;
}

/// What a run reads must be several times a device's cache.
int layers_for(const SceneShape& shape) {
  if (shape.layers > 0) return shape.layers;
  const double index = static_cast<double>(clusters_of(shape)) * (kDim + 12);
  return std::clamp(static_cast<int>(4 * limits().cache_bytes / index), 1, 32);
}

SceneShape with_layers(SceneShape shape) {
  shape.layers = layers_for(shape);
  return shape;
}

}  // namespace

DecodeScene::Layer::Layer(const SceneShape& s)
    : centroids(clusters_of(s) * kDim),
      value_means(clusters_of(s) * kDim),
      scale(clusters_of(s)),
      spread(clusters_of(s)),
      profile(kHeads * segments_of(s) * kDim),
      offset(make_offsets(s)),
      used(std::vector<std::int32_t>(kHeads * segments_of(s), kClusters)),
      stored(kHeads * rows_of(s) * 2 * kDim, s.host_rows ? Place::kPinned : Place::kDevice),
      near(kHeads * near_rows_of(s) * 2 * kDim),
      live(kHeads * live_rows(s) * 2 * kDim),
      ids(entries_of(s)),
      row_counts(entries_of(s)),
      num_clusters(lists_of(s)),
      num_rows(lists_of(s)),
      row_ids(entries_of(s)),
      directory(std::vector<std::uint32_t>(kHeads * quads_of(s), kNoSlot)),
      owner(std::vector<std::uint32_t>(kHeads * slots_of(s), kNoSlot)),
      stamp(kHeads * slots_of(s)),
      referenced(kHeads * slots_of(s)),
      full_in(kHeads),
      hand(kHeads),
      slots(kHeads * slots_of(s) * kQuadRows * 2 * kDim),
      copies(s.host_rows ? entries_of(s) : 1),
      counts(kHeads) {
  centroids.fill(random_bytes(centroids.size()));
  value_means.fill(random_bytes(value_means.size()));
  // Logits of the softmax with a standard deviation of 2.5: elements of a query have 1, of a centroid
  // 73 before scaling, and the softmax scale is 1 / sqrt(head_dim).
  scale.fill(std::vector<float>(std::min(scale.size(), std::size_t{1} << 20), 2.5F / 73.0F));
  spread.fill(random_floats(spread.size(), 0.0F, 0.3F));
  profile.fill(random_floats(profile.size(), 0.5F, 1.5F));
  stored.fill(random_bf16(stored.size()));
  if (near.size() > 0) near.fill(random_bf16(near.size()));
  live.fill(random_bf16(live.size()));
}

DecodeScene::DecodeScene(SceneShape shape)
    : shape_(with_layers(shape)),
      row_pages_(counting(pages_of(shape) * static_cast<std::size_t>(shape.batch))),
      live_pages_(counting(kLivePages * static_cast<std::size_t>(shape.batch))),
      blocks_(counting(all_blocks(shape))),
      segments_(segments_of(shape)),
      views_(static_cast<std::size_t>(shape.batch)),
      query_(random_floats(static_cast<std::size_t>(shape.batch * kQHeads * kDim), -1.73F, 1.73F)),
      e_(clusters_of(shape) * kGroup),
      sums_(kHeads * all_blocks(shape) * kGroup),
      scores_(static_cast<std::size_t>(shape.batch)),
      totals_(static_cast<std::size_t>(shape.batch * kQHeads)),
      slice_keys_(lists_of(shape) * on_device::kSliceClusters *
                  static_cast<std::size_t>(on_device::num_slices(num_blocks(shape)))),
      slice_ids_(slice_keys_.size()),
      slice_counts_(slice_keys_.size() / on_device::kSliceClusters),
      first_slice_(static_cast<std::size_t>(shape.batch)),
      select_arrived_(lists_of(shape)),
      attend_arrived_(lists_of(shape)),
      partials_(static_cast<std::size_t>(shape.batch * kQHeads * attend::kMaxPieces)),
      outputs_(partials_.size() * kDim),
      out_(static_cast<std::size_t>(shape.batch * kQHeads * kDim)),
      lse_(static_cast<std::size_t>(shape.batch * kQHeads)),
      keep_all_(static_cast<std::size_t>(shape.batch)),
      keep_none_(std::vector<std::uint32_t>(static_cast<std::size_t>(shape.batch), kNoSlot)),
      plan_numbers_({0, 1, 2, 3}),
      dropped_(dropped_by_percent(shape)) {
  for (int i = 0; i < shape_.layers; ++i) layers_.push_back(std::make_unique<Layer>(shape_));
  const std::size_t blocks = sequence_blocks(shape_);
  const std::size_t segments = segments_of(shape_) / static_cast<std::size_t>(shape_.batch);
  std::vector<SegmentView> all_segments;
  std::vector<SequenceView> views;
  std::vector<RowScores> scores;
  std::vector<std::int64_t> first_slice;
  for (std::size_t s = 0; s < static_cast<std::size_t>(shape_.batch); ++s) {
    for (std::size_t i = 0; i < segments; ++i) {
      all_segments.push_back({static_cast<std::uint32_t>(s * segments + i),
                              static_cast<std::int32_t>(i) * (kClusters / kBlockClusters),
                              kClusters / kBlockClusters, kSegment,
                              static_cast<std::int64_t>(i) * kSegment});
    }
    SequenceView view{};
    view.row_pages = row_pages_.data() + s * pages_of(shape_);
    view.live_pages = live_pages_.data() + s * kLivePages;
    view.first_pending = kPageRows;
    view.segments = segments_.data() + s * segments;
    view.blocks = blocks_.data() + s * blocks;
    view.num_segments = static_cast<std::int32_t>(segments);
    view.num_blocks = static_cast<std::int32_t>(blocks);
    view.num_sinks = kSinks;
    view.num_pending = kPending;
    view.num_stored = shape_.context;
    view.budget_tokens = shape_.budget;
    view.query_row = static_cast<std::int32_t>(s);
    views.push_back(view);
    const std::size_t before = s * blocks * kHeads * kGroup;
    first_slice.push_back(static_cast<std::int64_t>(s) * kHeads *
                          on_device::num_slices(static_cast<int>(blocks)));
    scores.push_back({e_.data() + before * kBlockClusters, nullptr, sums_.data() + before});
  }
  copy(segments_.data(), all_segments.data(), all_segments.size() * sizeof(SegmentView));
  copy(views_.data(), views.data(), views.size() * sizeof(SequenceView));
  copy(scores_.data(), scores.data(), scores.size() * sizeof(RowScores));
  copy(first_slice_.data(), first_slice.data(), first_slice.size() * sizeof(std::int64_t));
  // Lists and slots as they are in the middle of decoding.
  for (int layer = 0; layer < shape_.layers; ++layer) {
    score(layer, nullptr);
    select(layer, nullptr);
    if (shape_.host_rows) recall(layer, nullptr);
  }
}

// ------------------------------------------------------------------------------------- views

IndexStore DecodeScene::index(const Layer& layer) const {
  IndexStore store;
  store.dtype = IndexDType::kInt8;
  store.head_dim = store.value_dim = kDim;
  store.num_blocks = static_cast<std::int64_t>(all_blocks(shape_));
  store.num_records = static_cast<std::int64_t>(segments_of(shape_));
  store.centroids = reinterpret_cast<std::byte*>(layer.centroids.data());
  store.value_means = reinterpret_cast<std::byte*>(layer.value_means.data());
  store.centroid_scale = store.value_scale = layer.scale.data();
  store.spread = layer.spread.data();
  store.offset = layer.offset.data();
  store.profile = store.value_sum = layer.profile.data();
  store.used = layer.used.data();
  return store;
}

RowStore DecodeScene::rows(const Buffer<std::uint16_t>& memory) const {
  RowStore store;
  store.base = reinterpret_cast<std::byte*>(memory.data());
  store.head_stride = memory.size() / kHeads * sizeof(std::uint16_t);
  store.row_bytes = 2 * kDim * sizeof(std::uint16_t);
  store.dtype = DType::kBF16;
  store.head_dim = store.value_dim = kDim;
  return store;
}

RowStore DecodeScene::stored_rows(const Layer& layer) const {
  RowStore store = rows(layer.stored);
  const RowStore near = rows(layer.near);
  store.near = near.base;
  store.near_stride = near.head_stride;
  store.num_near = static_cast<std::uint32_t>(near_rows_of(shape_));
  return store;
}

SelectionLists DecodeScene::lists(const Layer& layer) const {
  return {kHeads,
          shape_.budget,
          layer.ids.data(),
          layer.row_counts.data(),
          layer.num_clusters.data(),
          layer.num_rows.data(),
          layer.row_ids.data()};
}

on_device::SlotPools DecodeScene::pools(const Layer& layer) const {
  return {layer.directory.data(),
          layer.owner.data(),
          layer.stamp.data(),
          layer.referenced.data(),
          layer.hand.data(),
          layer.full_in.data(),
          reinterpret_cast<std::byte*>(layer.slots.data()),
          layer.slots.size() / kHeads * sizeof(std::uint16_t),
          static_cast<std::int64_t>(quads_of(shape_)),
          static_cast<int>(slots_of(shape_))};
}

on_device::PlanShape DecodeScene::plan(void* stream) const {
  return {shape_.batch, num_blocks(shape_), stream};
}

// --------------------------------------------------------------------------------------- ops

void DecodeScene::score(int layer, void* stream, on_device::IntegerMath math) const {
  const Layer& l = *layers_[static_cast<std::size_t>(layer)];
  on_device::score_clusters({views_.data(), index(l), query_.data(), scores_.data(), kQHeads,
                             kHeads, 1.0F / std::sqrt(float{kDim}), true},
                            plan(stream), math);
}

void DecodeScene::select(int layer, void* stream) const {
  const Layer& l = *layers_[static_cast<std::size_t>(layer)];
  on_device::select_clusters({views_.data(), index(l), scores_.data(), lists(l), totals_.data(),
                              kQHeads, kHeads, HeadGrouping::kShared},
                             {first_slice_.data(), slice_keys_.data(), slice_ids_.data(),
                              slice_counts_.data(), select_arrived_.data()},
                             plan(stream));
}

void DecodeScene::recall(int layer, void* stream, std::uint32_t plan,
                         const Buffer<std::uint32_t>& retain_from) const {
  const Layer& l = *layers_[static_cast<std::size_t>(layer)];
  on_device::recall_quads({pools(l), stored_rows(l), lists(l), retain_from.data(), l.copies.data(),
                           l.counts.data(), shape_.batch, kHeads, plan_numbers_.data() + plan},
                          stream);
}

void DecodeScene::drop(int layer, void* stream, int percent) const {
  const Layer& l = *layers_[static_cast<std::size_t>(layer)];
  on_device::drop_quads(pools(l), kHeads, dropped_.data() + percent, 1, stream);
}

void DecodeScene::attend(int layer, void* stream, bool dense) const {
  const Layer& l = *layers_[static_cast<std::size_t>(layer)];
  attend::AttendParams p{};
  p.rows = views_.data();
  p.query = query_.data();
  p.stored = stored_rows(l);
  p.live = rows(l.live);
  if (shape_.host_rows) {
    const on_device::SlotPools pool = pools(l);
    p.slots = {pool.directory, pool.num_quads, pool.slots, pool.head_stride};
  }
  p.lists = lists(l);
  p.all_rows = dense;
  p.partials = {partials_.data(), outputs_.data(), kQHeads, kDim};
  p.num_q_heads = kQHeads;
  p.num_kv_heads = kHeads;
  p.softmax_scale = 1.0F / std::sqrt(float{kDim});
  p.tail = dense ? Tail::kNone : Tail::kSecondMoment;
  p.tail_share = 1e-4F;
  p.index = index(l);
  p.scores = scores_.data();
  p.totals = totals_.data();
  on_device::attend(
      {p, true, !dense, contiguous_view(out_.data(), DType::kF32, {shape_.batch, kQHeads, kDim}),
       contiguous_view(lse_.data(), DType::kF32, {shape_.batch, kQHeads}), nullptr, nullptr},
      attend_arrived_.data(), plan(stream));
}

// ------------------------------------------------------------------------------------- bytes

double DecodeScene::index_bytes() const {
  return static_cast<double>(clusters_of(shape_)) * (kDim + 12) * shape_.layers;
}
double DecodeScene::row_bytes() const {
  return static_cast<double>(shape_.budget + kSinks + kPending) * shape_.batch * kHeads * 4 * kDim *
         shape_.layers;
}
double DecodeScene::dense_bytes() const {
  return static_cast<double>(shape_.context + kSinks + kPending) * shape_.batch * kHeads * 4 *
         kDim * shape_.layers;
}
double DecodeScene::recalled_bytes(int layer) const {
  double misses = 0;
  for (const auto& count : layers_[static_cast<std::size_t>(layer)]->counts.to_host()) {
    misses += count.misses;
  }
  return misses * kQuadRows * 4 * kDim;
}

const DecodeScene& scene_of(const SceneShape& shape) {
  static std::unique_ptr<DecodeScene> scene;
  static SceneShape made{};
  if (scene == nullptr || made != shape) {
    scene = nullptr;
    scene = std::make_unique<DecodeScene>(shape);
    made = shape;
  }
  return *scene;
}

}  // namespace clusterkv::bench
