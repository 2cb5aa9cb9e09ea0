// SPDX-License-Identifier: Apache-2.0
//
// One random life of one random cache, checked call by call against the naive one.
#pragma once

#include <numeric>
#include <set>

#include "tests/pipeline/model_checks.hpp"

namespace clusterkv::testing {

class Episode : ModelChecks {
 public:
  Episode(std::uint64_t seed, int max_operations)
      : ModelChecks(seed), max_operations_(max_operations) {
    for (int i = 0; i < 12; ++i) {
      topics_.push_back(random_.normals(static_cast<std::size_t>(model().head_dim), 1.5F));
    }
  }

  Tally run() {
    try {
      while (tally_.operations < max_operations_) act();
    } catch (const std::exception& error) {
      tally_.failure = "operation " + std::to_string(tally_.operations) + ": " + error.what() +
                       "\n" + coverage.newest();
    }
    return tally_;
  }

  using ModelChecks::coverage;

 private:
  using Rows = std::vector<std::vector<std::vector<NaiveCache::Row>>>;

  // ---------------------------------------------------------------------------- the sequences

  void act() {
    const int what = random_.between(0, 19);
    if (what == 0 && !live_.empty()) {
      remove();
    } else if (live_.empty() || (what <= 2 && live_.size() < 4)) {
      live_.push_back(harness_.cache.add_sequence());
      ++tally_.operations;
    } else if (what == 3) {
      fork(drawn_live());
    } else if (what == 4) {
      truncate(drawn_live());
    } else if (what == 5) {
      save_and_load(drawn_live());
    } else {
      step();
    }
  }

  SequenceId drawn_live() {
    return live_[static_cast<std::size_t>(random_.between(0, static_cast<int>(live_.size()) - 1))];
  }

  /// Where a sequence is cut: all of it stays, a few tokens go, or any number.
  int draw_length(SequenceId id) {
    const int length = lengths_.contains(id) ? lengths_.at(id) : 0;
    const int cut = pick("cut", {0, 1, 2, 2});
    return cut == 0 ? length : random_.between(cut == 1 ? std::max(0, length - 30) : 0, length);
  }

  void fork(SequenceId parent) {
    const int length = draw_length(parent);
    const NaiveCache before = naive_;
    const SequenceId unborn{1 << 30};
    naive_.fork(parent, unborn, length);
    const bool fits = live_.size() < 4 && naive_.held_tokens() <= config_.max_tokens;
    naive_ = before;
    ++tally_.operations;
    if (!fits) return require_no_room([&] { (void)harness_.cache.fork(parent, length); });
    const bool is_whole = lengths_.contains(parent) && lengths_.at(parent) == length;
    const SequenceId child = harness_.cache.fork(parent, is_whole ? -1 : length);
    require(harness_.cache.length(child) == length, "a fork of another length");
    naive_.fork(parent, child, length);
    adopt(child, parent);
  }

  void truncate(SequenceId id) {
    const int length = draw_length(id);
    const NaiveCache before = naive_;
    naive_.truncate(id, length);
    ++tally_.operations;
    if (naive_.held_tokens() > config_.max_tokens) {
      naive_ = before;
      return require_no_room([&] { harness_.cache.truncate(id, length); });
    }
    harness_.cache.truncate(id, length);
    require(harness_.cache.length(id) == length, "another length after truncate()");
    if (lengths_.contains(id)) lengths_[id] = length;
    check_stats(static_cast<std::int64_t>(live_.size()));
  }

  void save_and_load(SequenceId id) {
    std::vector<std::byte> bytes;
    harness_.cache.save(id, [&](std::span<const std::byte> part) {
      bytes.insert(bytes.end(), part.begin(), part.end());
    });
    std::size_t at = 0;
    const ReadFn read = [&](std::span<std::byte> to) {
      const std::size_t count = std::min(to.size(), bytes.size() - at);
      std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), count, to.begin());
      at += count;
      return count;
    };
    tally_.operations += 2;
    const std::int64_t length = lengths_.contains(id) ? lengths_.at(id) : 0;
    if (live_.size() == 4 || naive_.held_tokens() + length > config_.max_tokens) {
      return require_no_room([&] { (void)harness_.cache.load(read); });
    }
    const SequenceId loaded = harness_.cache.load(read);
    require(at == bytes.size(), "load() did not read what save() wrote");
    naive_.restore(id, loaded);
    adopt(loaded, id);
  }

  /// A sequence that is what another one was.
  void adopt(SequenceId child, SequenceId parent) {
    live_.push_back(child);
    if (lengths_.contains(parent)) lengths_[child] = static_cast<int>(harness_.cache.length(child));
    if (prefilled_.contains(parent)) prefilled_.insert(child);
    check_stats(static_cast<std::int64_t>(live_.size()));
  }

  template <class Call>
  static void require_no_room(const Call& call) {
    try {
      call();
    } catch (const CapacityError&) {
      return;
    }
    throw Mismatch("more fits than there is room for");
  }

  void remove() {
    const auto at = live_.begin() + random_.between(0, static_cast<int>(live_.size()) - 1);
    harness_.cache.remove(*at);
    naive_.remove(*at);
    prefilled_.erase(*at);
    lengths_.erase(*at);
    live_.erase(at);
    ++tally_.operations;
  }

  StepRow draw_row(SequenceId id) {
    StepRow row{.id = id, .num_query_tokens = pick("queries", {0, 1, 1, 1, 1})};
    if (!prefilled_.contains(id) || random_.between(0, 15) == 0) {
      row.num_new_tokens = random_.between(1, 150);
      row.phase = pick("prompt", {Phase::kPrefill, Phase::kPrefillLast, Phase::kPrefillLast});
    } else {
      row.num_new_tokens = pick("decoded_more", {0, 0, 0, 1}) == 1 ? random_.between(2, 30) : 1;
    }
    row.budget_tokens = pick("own_budget", {0, 0, 1}) == 1 ? random_.between(1, 64) : 0;
    return row;
  }

  void draw_rows() {
    rows_.clear();
    for (const SequenceId id : live_) {
      if (random_.between(0, 3) != 0) rows_.push_back(draw_row(id));
    }
    if (pick("padding", {0, 0, 0, 1}) == 1 || rows_.empty()) {
      rows_.push_back({kNoSequence, random_.between(1, 3), random_.between(0, 1)});
    }
    for (std::size_t i = rows_.size(); i > 1; --i) {
      std::swap(rows_[i - 1], rows_[static_cast<std::size_t>(random_.between(0, int(i) - 1))]);
    }
  }

  [[nodiscard]] bool has_room() const {
    std::int64_t tokens = naive_.held_tokens();
    for (const StepRow& row : rows_) tokens += row.id == kNoSequence ? 0 : row.num_new_tokens;
    return tokens <= config_.max_tokens;
  }

  // --------------------------------------------------------------------------------- one step

  void step() {
    draw_rows();
    ++tally_.operations;
    if (!has_room()) {
      try {
        begin();
      } catch (const CapacityError&) {
        return remove();
      }
      throw Mismatch("more than max_tokens fit");
    }
    begin();
    if (pick("cancelled", {0, 0, 0, 0, 0, 0, 0, 1}) == 1) return cancel();
    for (const StepRow& row : rows_) {
      if (row.id == kNoSequence) continue;
      lengths_[row.id] += row.num_new_tokens;
      if (row.phase == Phase::kPrefillLast) prefilled_.insert(row.id);
      require(harness_.cache.length(row.id) == lengths_[row.id], "another length");
    }
    append_all();
    for (int layer = 0; layer < model().num_layers; ++layer) check_layer(layer);
    check_stats(static_cast<std::int64_t>(live_.size()));
    if (random_.between(0, 9) == 0) check_rows();
  }

  /// The step ends between two layers, and has not been.
  void cancel() {
    std::vector<Rows> unused(rows_.size(), Rows(static_cast<std::size_t>(model().num_layers)));
    const int appended = random_.between(0, model().num_layers);
    for (int layer = 0; layer < appended; ++layer) append(layer, unused);
    for (const StepRow& row : rows_) {
      if (row.id == kNoSequence) continue;
      const int before = lengths_.contains(row.id) ? lengths_.at(row.id) : 0;
      harness_.cache.truncate(row.id, before);
      require(harness_.cache.length(row.id) == before, "another length after a cancelled step");
      naive_.cancel(row.id);
      ++tally_.operations;
    }
    check_stats(static_cast<std::int64_t>(live_.size()));
  }

  void begin() {
    if (pick("fresh_plan", {0, 0, 1}) == 1) {
      harness_.plan = harness_.cache.plan(rows_, kLimits, harness_.workspace());
    } else {
      harness_.begin(rows_);
    }
  }

  std::vector<float> draw_keys(int vectors) {
    std::vector<float> keys;
    for (int i = 0; i < vectors; ++i) {
      const auto& topic = topics_[static_cast<std::size_t>(random_.between(0, 11))];
      for (const float x : topic) keys.push_back(x + 0.5F * random_.normal());
    }
    return keys;
  }

  void append_all() {
    std::vector<Rows> new_rows(rows_.size(), Rows(static_cast<std::size_t>(model().num_layers)));
    std::vector<int> layers(static_cast<std::size_t>(model().num_layers));
    std::iota(layers.begin(), layers.end(), 0);
    if (pick("layers_backwards", {0, 1}) == 1) std::reverse(layers.begin(), layers.end());
    for (const int layer : layers) append(layer, new_rows);
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      if (rows_[r].id != kNoSequence) naive_.step(rows_[r], new_rows[r]);
    }
  }

  void append(int layer, std::vector<Rows>& new_rows) {
    const int tokens = harness_.plan.num_new_tokens();
    const int vectors = tokens * model().num_kv_heads;
    const std::int64_t kv_heads = model().num_kv_heads;
    const auto layout =
        pick("kv_layout", {Layout::kDense, Layout::kByHead, Layout::kPadded, Layout::kStrided});
    TypedTensor key({tokens, kv_heads, model().head_dim}, pick_dtype("key_dtype"), layout);
    TypedTensor value({tokens, kv_heads, value_dim()}, pick_dtype("value_dtype"), layout);
    key.write(draw_keys(vectors));
    value.write(random_.normals(static_cast<std::size_t>(vectors * value_dim())));
    harness_.cache.append(layer, harness_.plan, key.view(), value.view());
    ++tally_.operations;
    const Vec keys = key.read(), values = value.read();
    std::size_t at = 0;
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      for (int t = 0; t < rows_[r].num_new_tokens; ++t) {
        std::vector<NaiveCache::Row> heads;
        for (int head = 0; head < model().num_kv_heads; ++head, ++at) {
          heads.push_back({vector_at(keys, at), value_at(values, at)});
        }
        new_rows[r][static_cast<std::size_t>(layer)].push_back(std::move(heads));
      }
    }
  }

  // -------------------------------------------------------------------------------- one layer

  void check_layer(int layer) {
    const std::array<std::int64_t, 3> shape = {harness_.plan.num_query_tokens(),
                                               model().num_q_heads, model().head_dim};
    TypedTensor query(
        shape, pick_dtype("query_dtype"),
        pick("query_layout", {Layout::kDense, Layout::kByHead, Layout::kPadded, Layout::kStrided}));
    query.write(random_.normals(static_cast<std::size_t>(shape[0] * shape[1] * shape[2]), 2.0F));
    queries_ = query.read();
    const Selection selection = harness_.cache.select(layer, harness_.plan, query.view());
    const Choice choice = copy_choice(selection);
    const Lists positions = harness_.positions(layer, selection);
    tally_.operations += 2;
    check_choices(layer, choice, positions);
    attend(layer, query.view(), nullptr, choice, positions);
    if (random_.between(0, 2) == 0) attend_other(layer, query.view(), choice);
  }

  /// A caller's own choice: some clusters of ours, some rows less of each.
  void attend_other(int layer, const TensorView& query, Choice choice) {
    std::size_t capacity = 1;
    for (auto& row : choice.lists) {
      for (auto& list : row) {
        std::erase_if(list, [&](const Choice::Entry&) { return random_.between(0, 2) == 0; });
        for (auto& entry : list) entry.rows = random_.between(1, entry.rows);
        capacity = std::max(capacity, list.size());
      }
    }
    const std::size_t heads = choice.lists[0].size();
    std::vector<std::int32_t> ids(choice.lists.size() * heads * capacity, -1), counts(ids.size());
    for (std::size_t list = 0; list < choice.lists.size() * heads; ++list) {
      const auto& entries = choice.lists[list / heads][list % heads];
      for (std::size_t i = 0; i < entries.size(); ++i) {
        ids[list * capacity + i] = entries[i].cluster;
        counts[list * capacity + i] = entries[i].rows;
      }
    }
    const auto view = [&](const std::vector<std::int32_t>& data) {
      return contiguous_view(
          data.data(), DType::kI32,
          {static_cast<std::int64_t>(choice.lists.size()), static_cast<std::int64_t>(heads),
           static_cast<std::int64_t>(capacity)});
    };
    const Selection selection{view(ids), view(counts)};
    const Lists positions = harness_.positions(layer, selection);
    ++tally_.operations;
    attend(layer, query, &selection, choice, positions);
  }

  void attend(int layer, const TensorView& query, const Selection* selection, const Choice& choice,
              const Lists& positions) {
    const std::array<std::int64_t, 3> shape = {harness_.plan.num_query_tokens(),
                                               model().num_q_heads, value_dim()};
    TypedTensor out(shape, pick_dtype("out_dtype"),
                    pick("out_layout", {Layout::kDense, Layout::kByHead, Layout::kPadded}));
    const bool has_lse = pick("lse", {0, 1, 1, 1}) == 1;
    std::vector<float> lse(static_cast<std::size_t>(shape[0] * shape[1]), NAN);
    const TensorView lse_view = contiguous_view(lse.data(), DType::kF32, {shape[0], shape[1]});
    const AttendArgs args{query, {out.view(), has_lse ? lse_view : TensorView{}}};
    if (selection != nullptr) {
      harness_.cache.attend_selected(layer, harness_.plan, *selection, args);
    } else {
      harness_.cache.attend(layer, harness_.plan, args);
    }
    ++tally_.operations;
    require(out.gaps_untouched(), "wrote between the rows of out");
    check_outputs(layer, choice, positions, out, has_lse ? &lse : nullptr);
  }

  int max_operations_;
  std::vector<std::vector<float>> topics_;
  std::vector<SequenceId> live_;
  std::set<SequenceId> prefilled_;
};

}  // namespace clusterkv::testing
