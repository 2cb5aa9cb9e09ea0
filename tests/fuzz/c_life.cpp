// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/c_life.hpp"

#include <algorithm>
#include <cstring>

#include "tests/fuzz/require.hpp"

namespace clusterkv::fuzz {
namespace {

constexpr int kHeadDim = 64;
/// Of a store. Settings drawn at random may ask for more.
constexpr std::size_t kMostBytes = std::size_t{16} << 20;

template <class T>
T sized() {
  T it{};
  it.struct_size = sizeof it;
  return it;
}

}  // namespace

Stores& CLife::stores() {
  static Stores all;
  return all;
}

CLife::~CLife() {
  ckv_plan_destroy(plan_, nullptr);
  ckv_cache_destroy(cache_, nullptr);
  ckv_executor_destroy(executor_, nullptr);
}

/// A failure has a code that is known, a message, and is none of the kinds that mean a fault of ours.
ckv_status CLife::check(ckv_status status) {
  require(status == error_.code, "the error object has another code");
  const bool is_poor = status == CKV_OUT_OF_MEMORY && allocations_left_ < 0;
  require(status != CKV_OTHER_ERROR && status != CKV_CUDA_ERROR, error_.message);
  require(status != CKV_OUT_OF_MEMORY || is_poor, error_.message);
  require(status >= CKV_OK && status <= CKV_OTHER_ERROR, "a status that is none");
  require((status == CKV_OK) == (error_.message[0] == '\0'), "a message that does not belong");
  fail_region_ = -1;
  return status;
}

ckv_stats CLife::stats() {
  auto stats = sized<ckv_stats>();
  require(ckv_cache_stats(cache_, &stats, &error_) == CKV_OK, "no stats");
  return stats;
}

void CLife::check_unchanged(const ckv_stats& before) {
  const ckv_error kept = error_;
  const ckv_stats after = stats();
  require(std::memcmp(&before, &after, sizeof after) == 0, "a call that failed has changed counts");
  error_ = kept;
}

int CLife::run_tasks(void* context, int num_tasks, void (*task)(void*, int), void* arg) {
  auto& self = *static_cast<CLife*>(context);
  if (self.fail_region_-- == 0) return 1;
  for (int i = num_tasks - 1; i >= 0; --i) task(arg, i);
  return 0;
}

// ------------------------------------------------------------------------------------ creation

bool CLife::create() {
  error_ = sized<ckv_error>();
  config_ = sized<ckv_config>();
  check((bytes_.one_in(2) ? ckv_config_paper : ckv_config_standard)(&config_, &error_));
  config_.num_layers = 1 + bytes_.upto(1);
  config_.num_kv_heads = 1 + bytes_.upto(1);
  config_.num_q_heads = config_.num_kv_heads * (1 + bytes_.upto(1));
  config_.head_dim = kHeadDim;
  config_.kv_dtype = bytes_.upto(2);
  config_.tokens_per_cluster = bytes_.pick({1, 2, 4, 8});
  config_.segment_tokens = bytes_.pick({0, 8, 24, 5});
  config_.window_tokens = bytes_.pick({8, 4, 1, 30});
  config_.kmeans_iterations = 1 + bytes_.upto(1);
  config_.sink_tokens = bytes_.pick({2, 0, 5});
  config_.metric = bytes_.upto(2);
  config_.index_dtype = bytes_.upto(2);
  config_.budget_tokens = bytes_.pick({8, 1, 3, 64});
  config_.grouping = bytes_.upto(1);
  config_.tail = bytes_.upto(2);
  config_.dense_layers = bytes_.upto(1);
  config_.dense_threshold = bytes_.pick({0.0F, 1.5F});
  config_.residency = bytes_.upto(2);
  config_.retention = bytes_.upto(1);
  config_.live_tokens = bytes_.pick({0, 0, 64});
  config_.max_sequences = 1 + bytes_.upto(2);
  config_.max_tokens = bytes_.pick({128, 40, 300});
  config_.check_finite = bytes_.upto(1);
  if (bytes_.one_in(16)) config_.metric = bytes_.number();
  if (bytes_.one_in(16)) config_.window_tokens = bytes_.number();
  auto callbacks = sized<ckv_executor_callbacks>();
  callbacks.context = this;
  callbacks.concurrency = 1 + bytes_.upto(3);
  callbacks.run = run_tasks;
  require(ckv_executor_create_callbacks(&callbacks, &executor_, &error_) == CKV_OK, "no executor");
  auto memory = sized<ckv_memory_callbacks>();
  memory.context = this;
  memory.allocate = [](void* context, size_t bytes, size_t alignment, int32_t, int32_t) -> void* {
    auto& self = *static_cast<CLife*>(context);
    if (bytes > kMostBytes) self.allocations_left_ = 0;
    return --self.allocations_left_ < 0 ? nullptr : stores().take(bytes, alignment);
  };
  memory.deallocate = [](void*, void* data, size_t bytes, size_t alignment, int32_t, int32_t) {
    stores().give_back(data, bytes, alignment);
  };
  if (bytes_.one_in(16)) allocations_left_ = bytes_.upto(15);
  auto on = sized<ckv_resources>();
  on.executor = executor_;
  on.memory = &memory;
  return check(ckv_cache_create(&config_, &on, &cache_, &error_)) == CKV_OK;
}

void CLife::run() {
  if (!create()) return;
  for (int i = 0; i < 200 && !bytes_.empty(); ++i) act();
  finish();
}

void CLife::act() {
  switch (bytes_.upto(11)) {
    case 0: return add();
    case 1: return fork();
    case 2: return truncate();
    case 3: return remove();
    case 4: return save();
    case 5: return load();
    case 6: return read_rows();
    case 7: return drop_plan();
    default: return step();
  }
}

/// When all sequences are gone nothing is held.
void CLife::finish() {
  while (!lengths_.empty()) {
    const std::int64_t id = lengths_.begin()->first;
    std::int64_t length = -1;
    require(ckv_cache_length(cache_, id, &length, &error_) == CKV_OK, "a live sequence is not");
    require(length == lengths_.begin()->second, "another length");
    require(check(ckv_cache_remove(cache_, id, nullptr, &error_)) == CKV_OK, "cannot be removed");
    lengths_.erase(id);
  }
  const ckv_stats left = stats();
  require(left.live_sequences == 0 && left.live_tokens == 0, "sequences are left");
  require(left.held_bytes == 0, "pages are left");
  const bool has_plan = plan_ != nullptr;
  require((ckv_cache_destroy(cache_, &error_) == CKV_STEP_ERROR) == has_plan,
          "destroyed with plans");
  if (!has_plan) cache_ = nullptr;
}

// ---------------------------------------------------------------------------------- sequences

/// Mostly one that lives.
std::int64_t CLife::drawn_sequence() {
  if (lengths_.empty() || bytes_.one_in(16)) return bytes_.pick<std::int64_t>({-1, 0, 1, 99});
  auto at = lengths_.begin();
  std::advance(at, bytes_.upto(static_cast<int>(lengths_.size()) - 1));
  return at->first;
}

void CLife::add() {
  const ckv_stats before = stats();
  std::int64_t id = -1;
  if (check(ckv_cache_add_sequence(cache_, &id, &error_)) != CKV_OK) return check_unchanged(before);
  require(!lengths_.contains(id), "an id twice");
  lengths_[id] = 0;
}

void CLife::fork() {
  const ckv_stats before = stats();
  const std::int64_t parent = drawn_sequence();
  const std::int64_t tokens = bytes_.one_in(3) ? -1 : bytes_.byte();
  std::int64_t id = -1;
  if (bytes_.one_in(8)) fail_region_ = 0;
  if (check(ckv_cache_fork(cache_, parent, tokens, nullptr, &id, &error_)) != CKV_OK) {
    return check_unchanged(before);
  }
  require(!lengths_.contains(id), "an id twice");
  lengths_[id] = tokens == -1 ? lengths_.at(parent) : tokens;
}

void CLife::truncate() {
  const ckv_stats before = stats();
  const std::int64_t id = drawn_sequence();
  const std::int64_t tokens = bytes_.byte() - 1;
  if (bytes_.one_in(8)) fail_region_ = 0;
  if (check(ckv_cache_truncate(cache_, id, tokens, nullptr, &error_)) != CKV_OK) {
    return check_unchanged(before);
  }
  require(tokens <= lengths_.at(id), "cut to more than there was");
  lengths_.at(id) = tokens;
}

void CLife::remove() {
  const ckv_stats before = stats();
  const std::int64_t id = drawn_sequence();
  if (check(ckv_cache_remove(cache_, id, nullptr, &error_)) != CKV_OK) {
    return check_unchanged(before);
  }
  require(lengths_.erase(id) == 1, "removed what was not there");
}

void CLife::drop_plan() {
  require(ckv_plan_destroy(plan_, &error_) == CKV_OK, "a plan cannot be destroyed");
  plan_ = nullptr;
}

// -------------------------------------------------------------------------------- save, load

void CLife::save() {
  const std::int64_t id = drawn_sequence();
  std::vector<unsigned char> bytes;
  auto writer = sized<ckv_writer>();
  writer.context = &bytes;
  writer.write = [](void* context, const void* data, size_t size) {
    auto& to = *static_cast<std::vector<unsigned char>*>(context);
    const auto* from = static_cast<const unsigned char*>(data);
    to.insert(to.end(), from, from + size);
    return 0;
  };
  const ckv_stats before = stats();
  if (check(ckv_cache_save(cache_, id, &writer, nullptr, &error_)) == CKV_OK) {
    saved_ = std::move(bytes);
    saved_length_ = lengths_.at(id);
  }
  check_unchanged(before);
}

/// What was saved, or that with a byte changed: then there must be an error.
void CLife::load() {
  std::vector<unsigned char> bytes = saved_;
  const bool is_damaged = !bytes.empty() && bytes_.one_in(4);
  if (is_damaged) {
    const auto at = static_cast<std::uint32_t>(bytes_.number()) % bytes.size();
    bytes[at] = static_cast<unsigned char>(bytes[at] ^ (1 + bytes_.upto(254)));
  }
  struct Source {
    const std::vector<unsigned char>* bytes;
    std::size_t at;
  } source{&bytes, 0};
  auto reader = sized<ckv_reader>();
  reader.context = &source;
  reader.read = [](void* context, void* data, size_t size) {
    auto& from = *static_cast<Source*>(context);
    const std::size_t count = std::min(size, from.bytes->size() - from.at);
    if (count > 0) std::memcpy(data, from.bytes->data() + from.at, count);
    from.at += count;
    return static_cast<std::int64_t>(count);
  };
  const ckv_stats before = stats();
  std::int64_t id = -1;
  if (check(ckv_cache_load(cache_, &reader, nullptr, &id, &error_)) != CKV_OK) {
    return check_unchanged(before);
  }
  require(!is_damaged, "damaged bytes were loaded");
  require(!lengths_.contains(id), "an id twice");
  lengths_[id] = saved_length_;
}

}  // namespace clusterkv::fuzz
